import dataclasses
import json
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from torch import nn

from genenv import tiers
from genenv.checkpoints import MANIFEST, CheckpointError, save_tensors, sha256
from genenv.evaluation import Evaluator
from genenv.metrics.classifier import ClassifierExtractor, reference_statistics
from genenv.metrics.judge import Judge
from genenv.models.digits_classifier import DigitsClassifier
from genenv.prompts import prompts
from genenv.rewards import available, make_reward
from genenv.rewards.adversarial import discriminator
from genenv.rewards.features import classifier_features
from genenv.rollout import static_actor
from genenv.tiers import (
    Tier,
    backbone_folder,
    backbones_with,
    backbones_with_any,
    choose_part,
    licences,
    load_part,
    parts_of,
    register_tier,
    tier_of,
    write_manifest,
)
from genenv.tiers.digits import DIGITS

NAMES = ("dark", "grey", "bright")


class Painter(nn.Module):
    """Paints a label's brightness, with dropout."""

    def __init__(self):
        super().__init__()
        self.levels = nn.Parameter(torch.tensor([0.1, 0.5, 0.9]))
        self.dropout = nn.Dropout(0.5)

    def forward(self, labels):
        return self.dropout(self.levels[labels])[:, None, None, None].expand(-1, 1, 6, 6)


class Eye(nn.Module):
    """A classifier of 6 x 6 images, with four features."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(36, 4), nn.Linear(4, 3)

    def features(self, images):
        return self.body(images.flatten(1))

    def forward(self, images):
        return self.head(self.features(images))


def real_images():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    noise = 0.1 * torch.rand(60, 1, 6, 6, generator=generator)
    return 0.4 * labels[:, None, None, None] + noise, labels


def brightness(backbone, device):
    return lambda images, context: images.mean((1, 2, 3))


BARE = Tier(name="toy", image_shape=(1, 6, 6), class_names=NAMES, parts={"painter": Painter})
TOY = dataclasses.replace(
    BARE,
    parts={"painter": Painter, "judge": Eye, "reward_features": Eye},
    licence="CC0",
    prompt="a {} square",
    real_images=real_images,
    judges={"toy": ClassifierExtractor},
    reward_features=classifier_features,
    rewards={"brightness": brightness},
    default_reward="brightness",
)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Returns what registers a tier and writes a folder of its networks."""
    monkeypatch.setattr(tiers, "_TIERS", tiers.tiers())

    def write(tier):
        register_tier(tier)
        folder = tmp_path / "weights"
        folder.mkdir()
        torch.manual_seed(0)
        for part, build in tier.parts.items():
            save_tensors(build().state_dict(), folder / f"{part}.safetensors")
        write_manifest(folder, tier.name)
        if "judge" in tier.parts:
            statistics = reference_statistics(load_part("judge", str(folder)), real_images()[0])
            save_tensors(statistics, folder / "reference.safetensors")
            write_manifest(folder, tier.name)
        return str(folder)

    return write


def test_a_folder_belongs_to_the_tier_that_its_manifest_names(make):
    folder = make(TOY)
    assert tier_of(folder) is TOY
    assert str(backbone_folder(folder)) == folder
    assert parts_of(folder) == ("painter", "judge", "reward_features")
    assert prompts(folder) == ("a dark square", "a grey square", "a bright square")
    assert licences(folder) == {"*.safetensors": "CC0"}


def test_a_folder_that_names_no_tier_is_of_the_digits(tmp_path):
    (tmp_path / MANIFEST).write_text("{}")
    assert tier_of(str(tmp_path)) is DIGITS
    assert tier_of("digits") is DIGITS


def test_a_new_tier_is_judged_and_paid(make):
    folder = make(TOY)
    images, labels = real_images()
    found = Judge(folder).measure(images, labels)
    assert found["fid"] == pytest.approx(0.0, abs=1e-4)
    assert found.keys() >= {"kid", "precision", "recall", "accuracy", "inception_score"}
    assert Judge(folder).extractor.protocol == "toy"
    assert available(folder) == ["brightness", "classifier", "fid", "loo_fid", "loo_fid_full", "png_size"]
    for name in available(folder):
        assert make_reward(name, folder, "cpu")(images, labels).shape == (60,)
    paid = make_reward("default", folder, "cpu")
    assert list(paid.rewards) == ["brightness"]
    torch.testing.assert_close(paid(images, labels), images.mean((1, 2, 3)))
    chosen = TOY.real_like(torch.tensor([2, 0]), torch.Generator().manual_seed(0))
    assert chosen.mean((1, 2, 3)).tolist() == pytest.approx([0.85, 0.05], abs=0.02)


def test_what_a_tier_has_not_is_said(make):
    folder = make(BARE)
    for use, message in (
        (lambda: Judge(folder), r"tier 'toy' has no judge: Tier\(judges=\.\.\.\) gives it one"),
        (lambda: prompts(folder), "tier 'toy' has no prompt for its classes"),
        (lambda: discriminator(folder, 3), "tier 'toy' has no discriminator"),
        (lambda: make_reward("fid", folder, "cpu"), "tier 'toy' has no features for rewards"),
        (lambda: make_reward("clip", folder, "cpu"), "tier 'toy' has no scorer of prompts"),
        (lambda: make_reward("adversarial", folder, "cpu"), "has no trained discriminator for backbone"),
        (lambda: make_reward("classifier", folder, "cpu"), "has no 'reward_features'; it has painter"),
        (lambda: BARE.real_like(torch.zeros(1), torch.Generator()), "tier 'toy' has no real images"),
        (lambda: load_part("vq", folder), "of the tier 'toy' has no 'vq'; it has painter"),
    ):
        with pytest.raises(ValueError, match=message):
            use()
    assert available(folder) == ["png_size"]
    assert make_reward("default", folder, "cpu") is None


def test_a_folder_of_another_tier_makes_no_environment(make):
    with pytest.raises(ValueError, match="weights' of the tier 'toy' has no 'maskgit'; it has painter"):
        gym.make("AdaGen/MaskGIT-v0", backbone=make(BARE))


@pytest.mark.parametrize("name", ["5", "null", '["toy"]', '{"toy": 1}'])
def test_a_folder_whose_tier_is_no_name_is_refused(tmp_path, name):
    (tmp_path / MANIFEST).write_text(f'{{"tier": {name}}}')
    with pytest.raises(CheckpointError, match=r"manifest\.json: tier must be a name, got "):
        tier_of(str(tmp_path))


def test_a_folder_of_a_tier_that_is_not_registered_is_refused_by_name(make):
    folder = make(BARE)
    tiers._TIERS.pop("toy")
    message = (
        r"manifest\.json names the tier 'toy', but there are digits, .*: import the module that registers"
    )
    with pytest.raises(ValueError, match=message):
        load_part("painter", folder)


def test_a_folder_is_not_taken_over_by_another_tier(make):
    folder = make(BARE)
    with pytest.raises(ValueError, match="holds networks of the tier 'toy', not of 'digits'"):
        write_manifest(backbone_folder(folder))
    with pytest.raises(ValueError, match=r"tier must be one of digits, .*, toy, got 'cats'"):
        write_manifest(backbone_folder(folder), "cats")


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "digits"},
        {"name": "imagenet256-maskgit-l"},
        {"released": {"digits": {"painter": "MaskGIT-L"}}},
        {"released": {"imagenet256-var-d16": {"painter": "MaskGIT-L"}}},
    ],
)
def test_names_that_are_taken_are_refused(make, changes):
    with pytest.raises(ValueError, match=r"is a name of the tier '(digits|imagenet256)' already"):
        register_tier(dataclasses.replace(BARE, **changes))


def test_a_tier_may_be_registered_again(make):
    folder = make(BARE)
    register_tier(TOY)
    assert tier_of(folder) is TOY


def test_a_new_tier_may_bring_a_folder_of_its_own(make):
    folder = backbone_folder(make(BARE))
    register_tier(dataclasses.replace(TOY, folder=folder))
    assert backbones_with(["painter"]) == ["toy"]
    assert backbone_folder("toy") == folder
    assert torch.equal(load_part("painter", "toy").levels, Painter().levels)


def test_one_of_several_parts_is_chosen_by_name_else_the_first_that_there_is():
    assert [choose_part("digits", given, ["sit", "dit"], "flow") for given in (None, "sit", "dit")] == [
        "sit",
        "sit",
        "dit",
    ]
    assert choose_part("digits", None, ["gpt", "dit"], "flow") == "dit"
    message = "network must be one of gpt, dit, got 'gpt'; 'digits' has dit"
    with pytest.raises(ValueError, match=message):
        choose_part("digits", "gpt", ["gpt", "dit"], "flow")
    with pytest.raises(ValueError, match="'digits' has no flow"):
        choose_part("digits", None, ["gpt"], "flow")
    assert backbones_with_any(["gpt", "dit"]) == backbones_with(["dit"])
    assert backbones_with_any(["llamagen", "maskgit"])[0] == "digits"
    assert len(set(backbones_with_any(["llamagen", "maskgit"]))) == len(
        backbones_with_any(["llamagen", "maskgit"])
    )


def test_a_frozen_part_needs_no_gradient_and_a_trainable_one_does(make):
    folder = make(TOY)
    labels = torch.arange(3)
    for trainable in (False, True):
        model = load_part("painter", folder, trainable=trainable)
        assert model.levels.requires_grad == trainable
        assert not model.training
        assert torch.equal(model(labels), model(labels))  # no dropout
    assert not torch.equal(model.train()(labels.repeat(20)), model(labels.repeat(20)))


def test_training_a_part_leaves_its_file_and_other_copies_alone(make):
    folder = make(TOY)
    before = sha256(backbone_folder(folder) / "painter.safetensors")
    model, other = (load_part("painter", folder, trainable=True) for _ in range(2))
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    model(torch.arange(3)).sum().backward()
    optimiser.step()
    assert not torch.equal(model.levels, other.levels)
    assert torch.equal(other.levels, Painter().levels)
    assert sha256(backbone_folder(folder) / "painter.safetensors") == before


@pytest.mark.parametrize("name", ["vq", "maskgit", "dit", "llamagen", "vqgan", "var"])
def test_every_generator_can_be_trained(name):
    model = load_part(name, "digits", trainable=True)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_a_random_backbone_can_be_trained(monkeypatch):
    from genenv.releases import RELEASES

    release = dataclasses.replace(RELEASES["MaskGIT-L"], build=Painter)
    monkeypatch.setitem(RELEASES, "MaskGIT-L", release)
    assert load_part("maskgit", "random:imagenet256-maskgit-l", trainable=True).levels.requires_grad


def test_a_released_backbone_has_no_folder():
    with pytest.raises(ValueError, match="consists of released files and has no folder"):
        backbone_folder("imagenet256-maskgit-l")
    with pytest.raises(ValueError, match="got 'random:digits'"):
        tier_of("random:digits")


def test_the_tiers_of_imagenet_name_their_classes():
    assert len(tier_of("imagenet512-var-d36").class_names) == 1000
    assert tier_of("random:imagenet256-maskgit-l").class_names[1] == "goldfish"
    assert tier_of("imagenet384-llamagen-l").image_shape == (3, 384, 384)


def test_the_environment_of_a_tier_shows_its_images_and_classes():
    env = gym.make("AdaGen/MaskGIT-v0").unwrapped
    assert env.sampler.image_shape == DIGITS.image_shape
    assert env.sampler.num_contexts == len(DIGITS.class_names)


def test_a_judge_of_ones_own_needs_no_classifier(make):
    """Features of the pixels themselves."""

    class Pixels:
        protocol, sha256, dtype, labelled, num_classes = "pixels", "0" * 64, torch.float64, False, 2
        device = torch.device("cpu")

        def __init__(self, backbone, device):
            features = self(real_images()[0])[0]
            self.real = features
            self.reference = tiers.Reference(features.mean(0).double(), torch.cov(features.T).double(), "1")

        def __call__(self, images):
            features = images.view(-1, 1, 6, 6)[:, 0, :2, :2].flatten(1)
            return features, features[:, :2]

    folder = make(dataclasses.replace(BARE, judges={"pixels": Pixels}))
    found = Judge(folder).measure(*real_images())
    assert "accuracy" not in found
    assert found["fid"] == pytest.approx(0.0, abs=1e-6)


def test_an_evaluation_goes_by_the_tier_of_its_backbone(make, tmp_path):
    """The networks of the digits under another judge, in a tier from outside."""
    other = dataclasses.replace(
        DIGITS,
        name="toy",
        folder=None,
        folder_parts=(),
        judges={"toy": ClassifierExtractor},
        parts={**DIGITS.parts, "judge": lambda: DigitsClassifier(width=24)},
    )
    register_tier(other)
    folder = tmp_path / "digits"
    folder.mkdir()
    for part in ("vq", "maskgit"):
        save_tensors(load_part(part, "digits").state_dict(), folder / f"{part}.safetensors")
    save_tensors(load_part("reward_features", "digits").state_dict(), folder / "judge.safetensors")
    write_manifest(folder, "toy")
    statistics = reference_statistics(load_part("judge", str(folder)), DIGITS.real_images()[0])
    save_tensors(statistics, folder / "reference.safetensors")
    write_manifest(folder, "toy")
    evaluator = Evaluator("AdaGen/MaskGIT-v0", {"backbone": str(folder)}, num_images=80, batch_size=80)
    found = evaluator(static_actor(evaluator.env))
    assert found.protocol == "toy"
    assert found.judge_sha256 == json.loads((folder / MANIFEST).read_text())["judge.safetensors"]


def test_a_reference_that_is_not_finite_is_refused(make):
    folder = backbone_folder(make(TOY))
    statistics = reference_statistics(load_part("judge", str(folder)), real_images()[0])
    statistics["judge.std"][1] = torch.nan
    save_tensors(statistics, folder / "reference.safetensors")
    write_manifest(folder, "toy")
    with pytest.raises(CheckpointError, match=r"reference\.safetensors: judge\.std must be finite, got nan"):
        Judge(str(folder))


def test_a_folder_with_a_colon_in_its_name_is_no_module(tmp_path, monkeypatch):
    (tmp_path / "bad_module.py").write_text("raise SystemExit('this code has run')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    folder = Path("bad_module:make")
    folder.mkdir()
    write_manifest(folder, "digits")
    assert tier_of(str(folder)).name == "digits"


@pytest.fixture
def tuned(tmp_path):
    """A folder with a changed LlamaGen of digits and nothing else, based on "digits"."""
    network = load_part("llamagen", "digits")
    save_tensors(
        {name: 1.1 * value for name, value in network.state_dict().items()}, tmp_path / "llamagen.safetensors"
    )
    write_manifest(tmp_path, "digits", base="digits")
    return tmp_path


def test_what_a_folder_lacks_is_its_bases(tuned):
    own, base = (load_part("llamagen", name).state_dict() for name in (str(tuned), "digits"))
    torch.testing.assert_close(own["norm.weight"], 1.1 * base["norm.weight"])
    assert parts_of(str(tuned)) == parts_of("digits")
    assert licences(str(tuned)) == licences("digits")
    for part in ("vq", "judge"):
        torch.testing.assert_close(
            load_part(part, str(tuned)).state_dict(), load_part(part, "digits").state_dict()
        )
    assert Judge(str(tuned)).extractor.sha256 == Judge("digits").extractor.sha256
    reward = make_reward({"clip": 1.0, "hpsv2": 1.0, "loo_fid": 1.0}, str(tuned), "cpu")
    images = torch.rand(4, 1, 8, 8)
    assert reward(images, torch.arange(4)).shape == (4,)
    env = gym.make_vec("AdaGen/LlamaGen-v0", num_envs=2, backbone=str(tuned))
    assert env.reset(seed=0)[0]["context"].shape == (2,)


@pytest.mark.parametrize("base", ["imagenet", "/elsewhere", 3])
def test_a_base_must_be_a_backbone_with_a_name(tuned, base):
    manifest = json.loads((tuned / MANIFEST).read_text())
    (tuned / MANIFEST).write_text(json.dumps(manifest | {"base": base}))
    with pytest.raises(CheckpointError, match="base must be 'digits', got"):
        load_part("vq", str(tuned))
    with pytest.raises(ValueError, match="base must be 'digits', got"):
        write_manifest(tuned, "digits", base=base)


def test_a_tuned_network_of_a_released_backbone_has_the_shape_of_that(tmp_path, monkeypatch):
    from genenv.models.llamagen import LlamaGenTransformer
    from genenv.releases import RELEASES

    name = tier_of("imagenet256-llamagen-b").released["imagenet256-llamagen-b"]["llamagen"]
    small = dataclasses.replace(
        RELEASES[name], build=lambda: LlamaGenTransformer(4, 16, 8, 1, 2, num_classes=3)
    )
    monkeypatch.setitem(RELEASES, name, small)
    network = load_part("llamagen", "random:imagenet256-llamagen-b")
    save_tensors(
        {name: 2 * value for name, value in network.state_dict().items()}, tmp_path / "llamagen.safetensors"
    )
    write_manifest(tmp_path, "imagenet256", base="random:imagenet256-llamagen-b")
    own = load_part("llamagen", str(tmp_path))
    torch.testing.assert_close(own.output.weight, 2 * network.output.weight)
