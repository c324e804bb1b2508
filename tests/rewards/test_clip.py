import json
import shutil
import sys

import pytest
import torch

from genenv.checkpoints import CheckpointError
from genenv.data import digits
from genenv.models.clip import CLIP
from genenv.prompts import prompts
from genenv.protocols import Reward
from genenv.rewards import make_reward
from genenv.rewards.clip import (
    HPSV2,
    PromptScore,
    load_clip,
    load_hpsv2,
    load_open_clip,
    make_clip,
    make_hpsv2,
    make_hpsv2_0,
    make_pickscore,
)
from genenv.tiers import backbone_folder, write_manifest
from genenv.zoo.digits import split
from genenv.zoo.scorers import write_tokenizer

transformers = pytest.importorskip("transformers")
open_clip = pytest.importorskip("open_clip")

IMAGENET = "imagenet256-maskgit-l"
IMAGES = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 998, 999, 3])
SMALL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 12, "patch_size": 6, "width": 16, "head_width": 8, "layers": 1},
    "text_cfg": {"width": 8, "heads": 2, "layers": 1},
}


def save_clip(folder, seed=0):
    """Writes a small random CLIP as transformers does."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    tokenizer = write_tokenizer(folder)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.CLIPConfig(
        text_config={**tower, **tokens, "vocab_size": len(tokenizer), "max_position_embeddings": 12},
        vision_config={**tower, "image_size": 12, "patch_size": 6},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    mean_std = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.3, 0.2, 0.25]}
    (folder / "preprocessor_config.json").write_text(json.dumps(mean_std))
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folder of the released files, without a network to download from, and open_clip's ViT-H-14 made small."""
    monkeypatch.setenv("GENENV_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-H-14", SMALL)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def save_hpsv2(path, seed=0):
    """Writes a small random checkpoint as HPSv2's authors do, and returns its network."""
    torch.manual_seed(seed)
    network = open_clip.CLIP(**open_clip.get_model_config("ViT-H-14")).eval()
    torch.save({"epoch": 1, "name": "x", "state_dict": network.state_dict()}, path)
    return network


@torch.no_grad()
def cosines_by_open_clip(network):
    """Returns the cosine of each image with its own prompt, in the way of open_clip's documentation."""
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    tokens = open_clip.get_tokenizer("ViT-H-14")([prompts(IMAGENET)[i] for i in LABELS])
    images = network.encode_image((IMAGES - mean) / std, normalize=True)
    return (images * network.encode_text(tokens, normalize=True)).sum(-1)


@torch.no_grad()
def logits_by_transformers(folder):
    """Returns the logit of each image and its own prompt, and the logit scale, by transformers' own forward."""
    network = transformers.CLIPModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(
        [prompts(IMAGENET)[i] for i in LABELS], padding=True, truncation=True, return_tensors="pt"
    )
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.3, 0.2, 0.25]).view(3, 1, 1)
    output = network(pixel_values=(IMAGES - mean) / std, **tokens)
    return output.logits_per_image.diagonal(), network.logit_scale.exp()


def test_clip_pays_the_plain_cosine_of_vit_l_14(home):
    logits, scale = logits_by_transformers(save_clip(home / "clip-vit-large-patch14"))
    reward = make_clip(IMAGENET, "cpu")
    assert isinstance(reward, Reward)
    assert reward.name == "clip"
    torch.testing.assert_close(reward(IMAGES, LABELS), logits / scale)


def test_pickscore_pays_the_logit(home):
    processor = save_clip(home / "CLIP-ViT-H-14-laion2B-s32B-b79K", seed=1)
    folder = save_clip(home / "PickScore_v1")
    logits, _ = logits_by_transformers(folder)
    for file in folder.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    (processor / "model.safetensors").unlink()
    torch.testing.assert_close(make_pickscore(IMAGENET, "cpu")(IMAGES, LABELS), logits)


def test_each_version_of_hpsv2_pays_the_cosine_of_its_own_file(home):
    for seed, (version, make) in enumerate({"2.1": make_hpsv2, "2.0": make_hpsv2_0}.items()):
        network = save_hpsv2(home / HPSV2[version], seed)
        torch.testing.assert_close(make(IMAGENET, "cpu")(IMAGES, LABELS), cosines_by_open_clip(network))


def test_a_file_of_another_version_is_refused(home):
    save_hpsv2(home / HPSV2["2.0"])
    with pytest.raises(CheckpointError, match=r"HPS_v2.1_compressed.pt is missing"):
        load_hpsv2("2.1")
    with pytest.raises(CheckpointError, match=r"named after another version than 2\.1"):
        load_hpsv2("2.1", home / HPSV2["2.0"])
    with pytest.raises(CheckpointError, match=r"named after another version than 2\.0"):
        load_hpsv2("2.0", home / HPSV2["2.1"])
    load_hpsv2("2.0", home / HPSV2["2.0"])
    with pytest.raises(ValueError, match=r"version must be one of 2\.1, 2\.0, got '3'"):
        load_hpsv2("3")


def test_a_file_that_changed_since_its_first_use_is_refused(home):
    save_hpsv2(home / HPSV2["2.1"])
    load_hpsv2()
    save_hpsv2(home / HPSV2["2.1"], seed=1)
    with pytest.raises(CheckpointError, match="when it was first used"):
        load_hpsv2()


def test_a_clip_that_changed_since_its_first_use_is_refused(home):
    folder = save_clip(home / "clip-vit-large-patch14")
    make_clip(IMAGENET, "cpu")
    shutil.rmtree(home / "other", ignore_errors=True)
    shutil.copy(save_clip(home / "other", seed=1) / "model.safetensors", folder)
    with pytest.raises(CheckpointError, match="when it was first used"):
        make_clip(IMAGENET, "cpu")


@pytest.mark.parametrize("keep", [0, 200, 5000])
def test_a_truncated_checkpoint_is_refused(home, keep):
    path = home / HPSV2["2.1"]
    save_hpsv2(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_hpsv2()


def test_a_checkpoint_of_another_network_is_refused(home):
    network = save_hpsv2(home / HPSV2["2.1"])
    state = network.state_dict()
    del state["ln_final.weight"]
    torch.save({"state_dict": state}, home / HPSV2["2.1"])
    with pytest.raises(CheckpointError, match=r"(?s)does not fit CLIP.*ln_final\.weight"):
        load_hpsv2()
    assert not (home / "recorded_sha256.json").exists()


def test_a_checkpoint_with_objects_is_refused(home):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "hook": shutil.rmtree}, home / HPSV2["2.1"])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_hpsv2()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("tokenizer.json", b"{"),
        ("preprocessor_config.json", b"{}"),
    ],
)
def test_a_damaged_clip_folder_is_refused(tmp_path, file, content):
    path = save_clip(tmp_path / "clip") / file
    path.write_bytes(path.read_bytes()[:1000] if content is None else content)
    with pytest.raises(CheckpointError, match="is not a readable CLIP of transformers"):
        load_clip(tmp_path / "clip")


@pytest.mark.parametrize("size", [0, 1000])
def test_damaged_weights_of_a_clip_are_refused(tmp_path, size):
    path = save_clip(tmp_path / "clip") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a readable checkpoint"):
        load_clip(tmp_path / "clip")


def test_weights_that_are_not_of_a_clip_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    path = save_clip(tmp_path / "clip") / "model.safetensors"
    state = load_file(path)
    del state["visual_projection.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"(?s)does not fit CLIPModel.*visual_projection\.weight"):
        load_clip(tmp_path / "clip")


def test_a_clip_of_another_size_is_refused(tmp_path):
    folder = save_clip(tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    config["projection_dim"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"(?s)model\.safetensors does not fit CLIPModel: .*projection"):
        load_clip(folder)


def test_offline_one_error_says_what_to_put_where(home):
    with pytest.raises(CheckpointError) as caught:
        make_clip(IMAGENET, "cpu")
    for part in (
        "https://huggingface.co/openai/clip-vit-large-patch14",
        "model.safetensors",
        str(home / "clip-vit-large-patch14"),
        "switched off",
    ):
        assert part in str(caught.value)
    with pytest.raises(CheckpointError, match=r"huggingface.co/xswu/HPSv2.*HPS_v2.1_compressed.pt"):
        make_hpsv2(IMAGENET, "cpu")


def test_what_is_missing_is_downloaded(home, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    source = save_clip(tmp_path / "clip-vit-large-patch14")

    def download(repo, file, *, revision, local_dir):
        assert (repo, revision) == ("openai/clip-vit-large-patch14", "main")
        local_dir.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / file, local_dir)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    expected = PromptScore("clip", load_clip(source), prompts(IMAGENET))(IMAGES, LABELS)
    assert torch.equal(make_clip(IMAGENET, "cpu")(IMAGES, LABELS), expected)


def test_the_processor_file_of_transformers_5_is_read(tmp_path):
    folder = save_clip(tmp_path / "clip")
    expected = load_clip(folder).encode_images(IMAGES)
    old = folder / "preprocessor_config.json"
    (folder / "processor_config.json").write_text(
        json.dumps({"image_processor": json.loads(old.read_text())})
    )
    old.unlink()
    assert torch.equal(load_clip(folder).encode_images(IMAGES), expected)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_clip(tmp_path)
    with pytest.raises(CheckpointError, match=r"x\.pt is missing"):
        load_open_clip("ViT-B-32", tmp_path / "x.pt")
    with pytest.raises(ValueError, match="got 'ViT-Z'"):
        load_open_clip("ViT-Z", tmp_path / "x.pt")


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    remedy = r"pip install 'genenv\[scorers\]'"
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=remedy):
        load_clip(tmp_path)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=remedy):
        load_open_clip("ViT-H-14", tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["hpsv2.0", "pickscore"])
def test_digits_have_no_such_scorer(name):
    with pytest.raises(ValueError, match=f"'{name}' has no network for digits.*use 'clip' or 'hpsv2'"):
        make_reward(name, "digits", "cpu")


@pytest.fixture(scope="module", params=[make_clip, make_hpsv2])
def of_digits(request) -> PromptScore:
    return request.param("digits", "cpu")


@pytest.fixture(scope="module")
def held_out():
    images, labels = digits()
    _, test = split()
    return images[test], labels[test]


def test_digits_score_highest_with_their_own_prompt(of_digits, held_out):
    images, labels = held_out
    every = torch.stack([of_digits(images, torch.full_like(labels, label)) for label in range(10)], 1)
    assert (every.argmax(1) == labels).float().mean() > 0.95


def test_digits_score_higher_than_what_is_none(of_digits, held_out):
    images, labels = held_out
    score = of_digits(images, labels)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(images.shape, generator=generator)
    other = images[(labels[None] == (labels[:, None] + 1) % 10).float().argmax(1)]
    for worse in (noise, torch.zeros_like(images), torch.ones_like(images), images.lerp(noise, 0.5), other):
        assert (score > of_digits(worse, labels)).float().mean() > 0.95


def test_a_score_does_not_depend_on_the_rest_of_the_batch(of_digits, held_out):
    images, labels = held_out
    alone = torch.cat([of_digits(images[i : i + 1], labels[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(of_digits(images, labels)[:8], alone)


def test_a_score_needs_no_gradient(of_digits, held_out):
    images, labels = held_out
    assert not of_digits(images.clone().requires_grad_(), labels).requires_grad


def test_texts_are_encoded_once(monkeypatch, held_out):
    calls = []
    encode = CLIP.encode_texts
    monkeypatch.setattr(CLIP, "encode_texts", lambda self, texts: calls.append(texts) or encode(self, texts))
    reward = make_clip("digits", "cpu")
    reward(*held_out)
    reward(*held_out)
    assert calls == [prompts("digits")]


def test_a_folder_of_the_zoo_has_its_own_scorers(tmp_path, held_out):
    for part in ("clip", "hpsv2"):
        shutil.copytree(backbone_folder("digits") / part, tmp_path / part)
    write_manifest(tmp_path)
    for make in (make_clip, make_hpsv2):
        torch.testing.assert_close(make(str(tmp_path), "cpu")(*held_out), make("digits", "cpu")(*held_out))


def test_a_damaged_scorer_of_the_zoo_is_refused(tmp_path):
    for part in ("clip", "hpsv2"):
        shutil.copytree(backbone_folder("digits") / part, tmp_path / part)
    write_manifest(tmp_path)
    for make, name in ((make_clip, "clip/merges.txt"), (make_hpsv2, "hpsv2/open_clip_config.json")):
        (tmp_path / name).write_text("{}")
        with pytest.raises(CheckpointError, match="is not the file"):
            make(str(tmp_path), "cpu")
