import functools
import json
import shutil

import gymnasium as gym
import pytest
import torch

from genenv.checkpoints import load_tensors, sha256
from genenv.data import digits
from genenv.models.digits_classifier import DigitsClassifier
from genenv.models.digits_discriminator import DigitsDiscriminator
from genenv.models.digits_vq import DigitsVQ
from genenv.models.maskgit import MaskGITTransformer
from genenv.tiers import backbone_folder, load_part
from genenv.tiers.digits import DIGITS
from genenv.zoo import digits as zoo
from genenv.zoo import training
from genenv.zoo.training import WeightAverage


@pytest.fixture
def small_batches(monkeypatch):
    """Environments of 4 images, and 32 images of them, where a recipe asks for thousands."""
    make_vec = gym.make_vec
    monkeypatch.setattr(gym, "make_vec", lambda *args, **kwargs: make_vec(*args, **kwargs | {"num_envs": 4}))
    few = functools.partial(training.random_schedules, num_images=32)
    monkeypatch.setattr(
        zoo, "random_schedules", lambda backbone, generator, num_images: few(backbone, generator)
    )


def classifier(**kwargs):
    return zoo.train_classifier(digits(), width=8, batch_size=32, **kwargs)


def maskgit(**kwargs):
    return zoo.train_maskgit(load_part("vq", "digits"), batch_size=8, **kwargs)


RECIPES = {
    "tokenizer": (functools.partial(zoo.train_tokenizer, batch_size=8), DigitsVQ, 40, 0.9),
    "maskgit": (maskgit, MaskGITTransformer, 30, 0.97),
    "classifier": (classifier, DigitsClassifier, 40, 0.95),
    "discriminator": (functools.partial(zoo.train_discriminator, "digits"), DigitsDiscriminator, 10, 0.995),
}
"""Network -> (recipe, type, number of steps, the share of the first loss that they must get below)."""


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_lowers_its_loss_and_returns_a_frozen_network(name):
    train, kind, num_steps, share = RECIPES[name]
    reports = []
    model = train(num_steps=num_steps, progress=lambda *report: reports.append(report))
    assert isinstance(model, kind)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [report[:2] for report in reports] == [(step + 1, num_steps) for step in range(num_steps)]
    losses = [report[2] for report in reports]
    assert sum(losses[-3:]) < share * sum(losses[:3])


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_repeats_itself_for_its_seed_alone(name):
    train, *_ = RECIPES[name]
    one, same, other = (train(num_steps=3, seed=seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(same[key], value) for key, value in one.items())
    assert not all(torch.equal(other[key], value) for key, value in one.items())


def test_a_recipe_anneals_beyond_its_warm_up():
    reports = []
    zoo.train_classifier(
        digits(), width=4, num_steps=120, batch_size=8, progress=lambda *r: reports.append(r[2])
    )
    assert len(reports) == 120


def test_random_schedules_differ_from_each_other(monkeypatch):
    make_vec = gym.make_vec
    monkeypatch.setattr(gym, "make_vec", lambda *args, **kwargs: make_vec(*args, **kwargs | {"num_envs": 4}))
    images, labels = training.random_schedules("digits", torch.Generator().manual_seed(0), num_images=8)
    assert images.shape == (8, 1, 8, 8)
    assert labels.shape == (8,)
    assert len(images.flatten(1).unique(dim=0)) == 8


def test_the_average_forgets_early_weights_and_keeps_late_ones():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(100.0)
    average = WeightAverage(model, decay=0.5)
    model.weight.data.fill_(0.0)
    average.update(model, step=0)
    assert average.average["weight"].item() == pytest.approx(10.0)  # the decay is still 1 / 10
    average.update(model, step=10**6)
    assert average.average["weight"].item() == pytest.approx(5.0)


def test_constants_are_not_averaged():
    model = torch.nn.Module()
    model.register_buffer("levels", torch.arange(3))
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    average = WeightAverage(model, decay=0.5)
    average.update(model, step=0)
    assert average.average == {}


def test_the_split_leaves_images_that_nothing_trains_on():
    train, test = zoo.split()
    assert (len(train), len(test)) == (1437, 360)
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(1797))
    assert torch.equal(zoo.split()[0], train)


def test_a_part_that_is_unknown_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--only must be one of vq, judge, .*, got 'gan'"):
        zoo.build(tmp_path / "zoo", only="gan")
    assert list(tmp_path.iterdir()) == []


def test_a_part_can_be_rebuilt_alone(tmp_path, monkeypatch):
    shipped, folder = backbone_folder("digits"), tmp_path / "zoo"
    shutil.copytree(shipped, folder)
    (folder / "reference.safetensors").write_bytes(b"old")
    hashes = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(hashes | {"reference.safetensors": "0"}))
    cards = []
    monkeypatch.setattr(zoo, "write_card", lambda *arguments: cards.append(arguments))
    zoo.build(folder, only="reference")
    torch.testing.assert_close(
        load_tensors(folder / "reference.safetensors"),
        load_tensors(shipped / "reference.safetensors"),
        rtol=1e-4,  # sums over the images in another order
        atol=1e-5,
    )
    rebuilt = json.loads((folder / "manifest.json").read_text())
    assert rebuilt == hashes | {"reference.safetensors": sha256(folder / "reference.safetensors")}
    seconds = json.loads((folder / "build.json").read_text())
    assert set(seconds) == set(zoo.PARTS)
    ((written, contents, times),) = cards
    assert (written, times) == (folder, seconds)
    assert set(contents.parts) == set(zoo.PARTS)


def test_the_zoo_makes_every_network_of_the_tier():
    assert set(zoo.PARTS) == {*DIGITS.parts, *DIGITS.folder_parts, "reference"}
    assert {generator.part for generator in zoo.GENERATORS} <= set(DIGITS.parts)


def test_the_progress_of_a_build_names_its_part(tmp_path, monkeypatch):
    def train(progress):
        progress(1, 2, 0.5)
        return torch.nn.Linear(1, 1)

    part = zoo.Part("a test", lambda out, progress: train(progress).state_dict())
    monkeypatch.setitem(zoo.PARTS, "vq", part)
    monkeypatch.setattr(zoo, "write_card", lambda *arguments: None)
    reports = []
    zoo.build(tmp_path / "zoo", only="vq", progress=lambda *report: reports.append(report))
    assert reports == [("vq", 1, 2, 0.5)]
    assert {path.name for path in (tmp_path / "zoo").iterdir()} == {
        "vq.safetensors",
        "manifest.json",
        "build.json",
    }
