import copy
import dataclasses
import pickle
import sys

import cloudpickle
import gymnasium as gym
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from genenv.checkpoints import CheckpointError
from genenv.data import digits
from genenv.models.digits_discriminator import DigitsDiscriminator
from genenv.models.projected_discriminator import ClassMapping, ProjectedDiscriminator, vision_transformer
from genenv.releases import RELEASES
from genenv.rewards.adversarial import AdversarialReward, adversarial_loss, discriminator, pretrained
from genenv.rollout import run_episode
from genenv.tiers import load_part
from genenv.tiers.digits import DIGITS

SIDE = 16
DINO = "dino-vit-s-16"


class Brightness(nn.Module):
    """Holds bright images for real."""

    def forward(self, images, context):
        return images.flatten(1)


def data(n=128, seed=0):
    """Returns noise, real images and their labels."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(1797, (n,), generator=generator)
    images, labels = digits()
    return torch.rand(n, 1, 8, 8, generator=generator), images[index], labels[index]


def train(reward, num_steps=20):
    optimiser = torch.optim.Adam(reward.discriminator.parameters(), lr=2e-3)
    for step in range(num_steps):
        optimiser.zero_grad()
        reward.loss(*data(seed=step + 1)).backward()
        optimiser.step()


def test_the_reward_is_the_squashed_mean_logit():
    images = torch.rand(5, 1, 8, 8) - 0.5
    paid = AdversarialReward(Brightness())(images, torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(paid, images.mean((1, 2, 3)).sigmoid())


def test_the_loss_is_the_non_saturating_one():
    fake, real, labels = data()
    loss = AdversarialReward(Brightness()).loss(fake, real, labels)
    torch.testing.assert_close(loss, F.softplus(fake).mean() + F.softplus(-real).mean())


def test_the_hinge_loss_stops_at_a_margin():
    fake, real, labels = 4 * torch.rand(3, 1, 2, 2) - 2, 4 * torch.rand(3, 1, 2, 2) - 2, torch.arange(3)
    loss = AdversarialReward(Brightness(), "hinge").loss(fake, real, labels)
    torch.testing.assert_close(loss, (1 + fake).clamp(min=0).mean() + (1 - real).clamp(min=0).mean())
    assert adversarial_loss(torch.tensor([-1.5]), torch.tensor([1.5]), "hinge").item() == 0


def test_an_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="objective must be one of bce, hinge, got 'wgan'"):
        AdversarialReward(Brightness(), "wgan")


class Calls(Brightness):
    """Counts the images of each call."""

    def __init__(self, uses_batch_statistics):
        super().__init__()
        self.uses_batch_statistics, self.sizes = uses_batch_statistics, []

    def forward(self, images, context):
        assert len(images) == len(context)
        self.sizes.append(len(images))
        return super().forward(images, context)


@pytest.mark.parametrize(("uses_batch_statistics", "sizes"), [(False, [14]), (True, [7, 7])])
def test_real_and_generated_images_meet_only_where_it_makes_no_difference(uses_batch_statistics, sizes):
    calls, (fake, real, labels) = Calls(uses_batch_statistics), data(7)
    loss = AdversarialReward(calls).loss(fake, real, labels)
    assert calls.sizes == sizes
    torch.testing.assert_close(loss, F.softplus(fake).mean() + F.softplus(-real).mean())


def test_training_lifts_real_images_above_noise():
    torch.manual_seed(0)
    reward = AdversarialReward(DigitsDiscriminator())
    noise, real, labels = data()
    before = (reward(real, labels) - reward(noise, labels)).mean().item()
    train(reward)
    after = (reward(real, labels) - reward(noise, labels)).mean().item()
    assert after > max(before, 0.0) + 0.15


def test_the_gradient_of_the_loss_reaches_every_weight():
    torch.manual_seed(0)
    reward = AdversarialReward(DigitsDiscriminator())
    reward.loss(*data()).backward()
    silent = [n for n, p in reward.discriminator.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_judging_changes_nothing_and_keeps_no_gradient():
    torch.manual_seed(0)
    reward = AdversarialReward(DigitsDiscriminator())
    _, real, labels = data()
    reward.loss(
        *data()
    )  # leaves the discriminator in training mode, where judging would move its spectral norms
    state = {name: value.clone() for name, value in reward.state_dict().items()}
    paid = reward(real, labels)
    assert not paid.requires_grad
    assert all(torch.equal(state[name], value) for name, value in reward.state_dict().items())


def test_the_label_matters():
    torch.manual_seed(0)
    reward = AdversarialReward(DigitsDiscriminator())
    _, real, labels = data()
    assert not torch.allclose(reward(real, labels), reward(real, (labels + 1) % 10))


def test_a_restored_reward_judges_and_learns_as_the_saved_one():
    torch.manual_seed(0)
    reward, other = AdversarialReward(DigitsDiscriminator()), AdversarialReward(DigitsDiscriminator())
    train(reward, 2)
    _, real, labels = data()
    assert not torch.allclose(other(real, labels), reward(real, labels))
    other.load_state_dict({name: value.clone() for name, value in reward.state_dict().items()})
    for _ in range(2):
        assert torch.equal(other(real, labels), reward(real, labels))
        train(reward, 1)
        train(other, 1)


def share_above(reward, real, labels, fake, fake_labels):
    """Returns how often a real image is paid more than a fake one."""
    return (reward(real, labels)[:, None] > reward(fake, fake_labels)).float().mean().item()


def test_the_shipped_discriminator_prefers_digits_to_samples_of_random_schedules():
    generator = torch.Generator().manual_seed(0)
    env = gym.make_vec("AdaGen/MaskGIT-v0", num_envs=128, reward="none", autoreset_mode="Disabled")
    episode = run_episode(env, lambda _: 2 * torch.rand(128, 4, generator=generator) - 1, seed=10**7)
    reward, labels = pretrained("digits", "cpu"), episode.context
    paid = reward(episode.images, labels)
    assert paid.shape == (128,)
    assert paid.min() > 0
    assert paid.max() < 1
    assert share_above(reward, DIGITS.real_like(labels, generator), labels, episode.images, labels) > 0.75


def test_the_frozen_discriminator_has_plain_weights_of_the_values_that_were_trained():
    plain, trained = (
        load_part("discriminator", "digits"),
        load_part("discriminator", "digits", trainable=True),
    )
    _, real, labels = data()
    assert torch.equal(plain(real, labels), trained(real, labels))
    assert not any(parametrize.is_parametrized(module) for module in plain.modules())
    assert all(parametrize.is_parametrized(module) for module in (*trained.stages, *trained.heads))
    for copied in (pickle.loads(pickle.dumps(plain)), cloudpickle.loads(cloudpickle.dumps(plain))):
        assert torch.equal(copied(real, labels), plain(real, labels))


def test_a_loaded_discriminator_can_go_on_training():
    reward = AdversarialReward(load_part("discriminator", "digits", trainable=True))
    noise, real, labels = data()
    before = reward.loss(noise, real, labels).item()
    train(reward, 10)
    assert reward.loss(noise, real, labels).item() < before


@pytest.mark.parametrize("other", ["noise", "black", "wrong label"])
def test_the_shipped_discriminator_prefers_digits_to_what_is_none(other):
    noise, real, labels = data()
    fake = {"noise": noise, "black": torch.zeros_like(noise), "wrong label": real}[other]
    shift = other == "wrong label"
    assert share_above(pretrained("digits", "cpu"), real, labels, fake, (labels + shift) % 10) > 0.75


def test_a_backbone_that_is_unknown_is_refused():
    with pytest.raises(ValueError, match=r"backbone must be 'digits', another name .*, got 'x'"):
        pretrained("x", "cpu")


def tiny_vit():
    vit = vision_transformer(img_size=SIDE, patch_size=8, embed_dim=24, depth=12, num_heads=2)
    for block in vit.blocks:
        nn.init.normal_(block.mlp.fc2.weight, std=0.3)
    return vit


def projected(seed=0, num_classes=3):
    pytest.importorskip("timm")
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    return ProjectedDiscriminator(tiny_vit(), ClassMapping(num_classes, 32), generator=generator)


def colours(n=16, seed=0):
    """Returns images of a wrong colour, of the right one, and the labels; larger than what the transformer sees."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    wrong, right = (0.5 * F.one_hot(k % 3, 3)[:, :, None, None] for k in (labels + 1, labels))
    first, second = 0.5 * torch.rand(2, n, 3, SIDE + 4, SIDE + 4, generator=generator)
    return first + wrong, second + right, labels


def train_projected(reward, num_steps, first_seed=1):
    trained = [p for p in reward.discriminator.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=1e-3, betas=(0.5, 0.999))
    for step in range(num_steps):
        optimiser.zero_grad()
        reward.loss(*colours(seed=first_seed + step)).backward()
        optimiser.step()


@pytest.mark.parametrize("objective", ["bce", "hinge"])
def test_the_projected_discriminator_learns_the_right_colour_of_each_class(objective):
    reward = AdversarialReward(projected(), objective)
    train_projected(reward, 25)
    fake, real, labels = colours(64, seed=1000)
    assert reward(real, labels).min() > reward(fake, labels).max()


def test_judging_leaves_the_projected_discriminator_as_it_is():
    reward, (fake, real, labels) = AdversarialReward(projected()), colours()
    reward.loss(fake, real, labels)
    state = {name: value.clone() for name, value in reward.state_dict().items()}
    paid = reward(real, labels)
    assert paid.shape == (16,)
    assert not paid.requires_grad
    assert torch.equal(reward(real, labels), paid)
    assert all(torch.equal(state[name], value) for name, value in reward.state_dict().items())


def test_a_restored_projected_discriminator_judges_and_learns_as_the_saved_one():
    reward, other = AdversarialReward(projected()), AdversarialReward(projected(seed=1))
    train_projected(reward, 2)
    _, real, labels = colours()
    assert not torch.allclose(other(real, labels), reward(real, labels))
    other.load_state_dict({name: value.clone() for name, value in reward.state_dict().items()})
    other.discriminator.generator.set_state(reward.discriminator.generator.get_state())
    for i in range(2):
        assert torch.equal(other(real, labels), reward(real, labels))
        train_projected(reward, 1, 10 + i)
        train_projected(other, 1, 10 + i)


def test_the_projected_discriminator_survives_a_copy():
    model, (_, real, labels) = projected().eval(), colours()
    for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(copied(real, labels), model(real, labels))
        assert torch.equal(copied.generator.get_state(), model.generator.get_state())


def test_digits_have_a_discriminator_of_their_own():
    model = discriminator("digits", 10)
    assert isinstance(model, DigitsDiscriminator)
    assert model(torch.rand(2, 1, 8, 8), torch.tensor([0, 9])).shape[0] == 2
    with pytest.raises(ValueError, match=r"backbone must be 'digits', another name .*, got 'x'"):
        discriminator("x", 10)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folder of the released checkpoints, with the transformer at a small size."""
    pytest.importorskip("timm")
    monkeypatch.setenv("GENENV_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    release = dataclasses.replace(RELEASES[DINO], build=tiny_vit)
    monkeypatch.setitem(RELEASES, DINO, release)
    return tmp_path


def test_a_released_backbone_is_judged_by_the_released_transformer(home):
    vit = tiny_vit()
    torch.save(vit.state_dict(), home / RELEASES[DINO].file)
    model = discriminator("imagenet256-maskgit-l", 1000)
    assert isinstance(model, ProjectedDiscriminator)
    found = model.dino.model["model"].state_dict()
    assert all(torch.equal(found[name], value) for name, value in vit.state_dict().items())
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"mapping", "heads"}
    images = torch.rand(2, 3, 20, 20)
    assert AdversarialReward(model)(images, torch.tensor([0, 999])).shape == (2,)


def test_without_the_transformers_weights_the_error_says_what_to_put_where(home):
    release = RELEASES[DINO]
    with pytest.raises(CheckpointError, match="is missing and downloads are switched off") as error:
        discriminator("imagenet256-maskgit-l", 1000)
    assert f"download it from {release.page} and put it at {home / release.file}" in str(error.value)


def test_a_random_backbone_needs_no_weights(home, monkeypatch):
    first, second = (discriminator("random:imagenet256-maskgit-l", 1000) for _ in range(2))
    images = torch.rand(2, 3, SIDE, SIDE)
    assert all(torch.equal(a, b) for a, b in zip(first.dino(images), second.dino(images), strict=True))
    assert not torch.equal(first.heads[0].cls.weight_orig, second.heads[0].cls.weight_orig)


def test_without_timm_the_remedy_is_named(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.models.vision_transformer", None)
    with pytest.raises(ImportError, match=r"needs timm: pip install 'genenv\[scorers\]'"):
        discriminator("random:imagenet256-maskgit-l", 1000)


@pytest.mark.parametrize("backbone", ["imagenet256-maskgit-l", "random:imagenet256-dit-xl-2"])
def test_a_released_backbone_has_no_trained_discriminator(backbone):
    message = (
        rf"no trained discriminator for backbone '{backbone}'; train one in turn .*, or use another reward"
    )
    with pytest.raises(ValueError, match=message):
        pretrained(backbone, "cpu")


@pytest.mark.parametrize("number", [1, 256, 257, 2000, 7937])
def test_images_are_judged_in_chunks_of_about_equal_size(number):
    sizes = []

    class Recorder(torch.nn.Module):
        def forward(self, images, context):
            sizes.append(len(images))
            return images.flatten(1)

    images = torch.rand(number, 1, 2, 2)
    paid = AdversarialReward(Recorder())(images, torch.zeros(number))
    torch.testing.assert_close(paid, images.mean((1, 2, 3)).sigmoid())
    assert max(sizes) <= 256
    assert min(sizes) >= max(sizes) - 15
    assert all(size % 8 == 0 for size in sizes[:-1])
