import functools

import pytest
import torch

from genenv.data import digits
from genenv.prompts import prompts
from genenv.rewards.clip import load_clip, load_open_clip
from genenv.tiers import backbone_folder
from genenv.zoo import scorers
from genenv.zoo.digits import build, split
from genenv.zoo.scorers import CORRUPTIONS, TEMPLATES, corrupt, like, train_clip, train_hpsv2

transformers = pytest.importorskip("transformers")
open_clip = pytest.importorskip("open_clip")

RECIPES = {"clip": train_clip, "hpsv2": train_hpsv2}
WEIGHTS = {"clip": "model.safetensors", "hpsv2": "hpsv2.pt"}


def load(part, folder):
    if part == "clip":
        return load_clip(folder / "clip")
    return load_open_clip(folder / "hpsv2", folder / "hpsv2" / "hpsv2.pt")


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(scorers, "random_schedules", lambda *_, **__: tuple(part[:64] for part in digits()))


@functools.cache
def held_out():
    images, labels = digits()
    _, test = split()
    return images[test], labels[test]


@pytest.mark.parametrize("part", RECIPES)
def test_a_recipe_lowers_its_loss_and_writes_what_its_library_reads(part, tmp_path):
    losses = []
    RECIPES[part](tmp_path, digits(), num_steps=40, batch_size=16, progress=lambda *r: losses.append(r[2]))
    assert len(losses) == 40
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
    if part == "clip":
        network = transformers.CLIPModel.from_pretrained(tmp_path / part)
    else:
        network = open_clip.create_model(
            f"local-dir:{tmp_path / part}", load_weights=False, pretrained_text=False
        )
        network.load_state_dict(torch.load(tmp_path / part / WEIGHTS[part])["state_dict"])
    torch.testing.assert_close(network.state_dict(), load(part, tmp_path).network.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == [part]


@pytest.mark.parametrize("part", RECIPES)
def test_a_recipe_repeats_itself_for_its_seed_alone(part, tmp_path):
    def weights(name, seed):
        RECIPES[part](tmp_path / name, digits(), seed=seed, num_steps=3, batch_size=8)
        return load(part, tmp_path / name).network.state_dict()

    first, again, other = weights("a", 0), weights("b", 0), weights("c", 1)
    assert all(torch.equal(again[name], value) for name, value in first.items())
    assert not all(torch.equal(other[name], value) for name, value in first.items())


def test_a_failed_training_leaves_the_old_folder(tmp_path):
    def fail(*_):
        raise KeyboardInterrupt

    train_clip(tmp_path, digits(), num_steps=1, batch_size=8)
    before = (tmp_path / "clip" / WEIGHTS["clip"]).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        train_clip(tmp_path, digits(), seed=1, num_steps=1, batch_size=8, progress=fail)
    assert (tmp_path / "clip" / WEIGHTS["clip"]).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corruption_grows_with_its_strength(kind):
    torch.manual_seed(0)
    images, labels = held_out()
    others = like(digits(), (labels + 1) % 10)
    kinds = torch.full_like(labels, CORRUPTIONS.index(kind))
    distances = []
    for strength in (0.0, 0.25, 0.5, 1.0):
        bad = corrupt(images, others, kinds, torch.full(labels.shape, strength))
        assert bad.min() >= 0
        assert bad.max() <= 1
        distances.append((bad - images).abs().mean().item())
    assert distances[0] == 0
    assert distances == sorted(set(distances))


def test_like_gives_images_of_the_labels():
    torch.manual_seed(0)
    images, labels = digits()
    wanted = torch.tensor([3, 3, 7])
    found = like((images, labels), wanted)
    for image, label in zip(found, wanted, strict=True):
        assert bool((images[labels == label] == image).flatten(1).all(1).any())
    assert not torch.equal(found[0], found[1])


def test_every_template_is_read_word_by_word(tmp_path):
    tokenizer = scorers.write_tokenizer(tmp_path)
    for template in TEMPLATES:
        text = template.format(name="seven", numeral=7)
        assert len(tokenizer(text).input_ids) == len(text.split()) + 2  # start and end
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer.unk_token_id not in tokenizer("an unseen word, 42!").input_ids[1:-1]


@pytest.mark.parametrize("part", RECIPES)
def test_the_shipped_folder_is_small(part):
    files = (backbone_folder("digits") / part).iterdir()
    assert sum(path.stat().st_size for path in files) < 1.5e6


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("part", RECIPES)
@torch.no_grad()
def test_the_shipped_scorers_prefer_held_out_digits_to_corrupted_ones(part, kind):
    torch.manual_seed(0)
    encoder = load(part, backbone_folder("digits"))
    images, labels = held_out()
    texts = encoder.encode_texts(prompts("digits"))[labels]
    kinds = torch.full_like(labels, CORRUPTIONS.index(kind))
    bad = corrupt(images, like(held_out(), (labels + 1) % 10), kinds, torch.full(labels.shape, 0.75))
    better, worse = ((encoder.encode_images(batch) * texts).sum(-1) for batch in (images, bad))
    assert (better > worse).float().mean() > 0.95


def test_missing_libraries_are_named_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(scorers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"need open_clip and transformers: pip install 'genenv\[scorers\]'"
    ):
        build(tmp_path / "zoo")
    assert list(tmp_path.iterdir()) == []
