import gymnasium as gym
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genenv.data import digits, real_like
from genenv.models.digits_discriminator import DigitsDiscriminator
from genenv.rewards.adversarial import AdversarialReward, pretrained
from genenv.rollout import run_episode


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
    assert share_above(reward, real_like(labels, generator), labels, episode.images, labels) > 0.75


@pytest.mark.parametrize("other", ["noise", "black", "wrong label"])
def test_the_shipped_discriminator_prefers_digits_to_what_is_none(other):
    noise, real, labels = data()
    fake = {"noise": noise, "black": torch.zeros_like(noise), "wrong label": real}[other]
    shift = other == "wrong label"
    assert share_above(pretrained("digits", "cpu"), real, labels, fake, (labels + shift) % 10) > 0.75


def test_a_backbone_that_is_unknown_is_refused():
    with pytest.raises(ValueError, match=r"backbone must be 'digits', another name .*, got 'x'"):
        pretrained("x", "cpu")
