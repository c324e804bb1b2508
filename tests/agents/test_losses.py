"""Losses against hand-computed values."""

import math

import pytest
import torch

from agents.losses import categorical_entropy, gaussian_log_prob, k3, ppo_policy_loss, traced


def test_gaussian_log_prob_is_that_of_torch():
    action, mean = torch.randn(5, 3), torch.randn(5, 3)
    expected = torch.distributions.Normal(mean, 0.7).log_prob(action).sum(-1)
    torch.testing.assert_close(gaussian_log_prob(action, mean, 0.7), expected)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.5, 1.0, -1.2),  # a gain beyond the trust region counts no more than its edge
        (0.5, 1.0, -0.5),  # a loss of probability on a good action is felt in full
        (1.5, -1.0, 1.5),  # as is a gain of probability on a bad one
        (0.5, -1.0, 0.8),
    ],
)
def test_ppo_clips_on_the_pessimistic_side(ratio, advantage, expected):
    loss = ppo_policy_loss(
        torch.tensor([math.log(ratio)]), torch.zeros(1), torch.tensor([advantage]), clip=0.2
    )
    assert loss.item() == pytest.approx(expected)


def test_gaussian_log_prob_takes_a_deviation_for_each_action():
    action, mean, std = torch.randn(5, 3), torch.randn(5, 3), 0.1 + torch.rand(5, 3)
    expected = torch.distributions.Normal(mean, std).log_prob(action).sum(-1)
    torch.testing.assert_close(gaussian_log_prob(action, mean, std), expected)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_a_trace_credits_a_decision_with_what_follows(decay):
    increments = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([sum(decay ** (j - k) * increments[j] for j in range(k, 4)) for k in range(4)])
    torch.testing.assert_close(traced(increments, decay), expected)


def test_k3_is_the_kl_in_the_mean_and_never_negative():
    generator = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(6, generator=generator).log_softmax(0) for _ in range(2))
    samples = torch.multinomial(policy.exp(), 200_000, replacement=True, generator=generator)
    estimates = k3(policy[samples], reference[samples])
    exact = (policy.exp() * (policy - reference)).sum()
    assert estimates.mean().item() == pytest.approx(exact.item(), rel=0.03)
    assert (estimates >= 0).all()
    assert k3(policy, policy).abs().max() == 0
    by_hand = math.exp(-1.0 + 3.0) - (-1.0 + 3.0) - 1
    assert k3(torch.tensor(-3.0), torch.tensor(-1.0)).item() == pytest.approx(by_hand)


@pytest.mark.parametrize("size", [2, 7])
def test_the_entropy_of_tokens_lies_between_0_and_1(size):
    logits = torch.stack([torch.zeros(size), 50.0 * torch.eye(size)[1], torch.linspace(-1, 2, size)])
    expected = torch.distributions.Categorical(logits=logits).entropy()
    found = categorical_entropy(logits.log_softmax(-1))
    torch.testing.assert_close(found, expected)
    assert found[0].item() == pytest.approx(math.log(size))
    assert found[1].item() == pytest.approx(0, abs=1e-6)
