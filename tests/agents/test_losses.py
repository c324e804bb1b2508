"""Losses against hand-computed values."""

import math

import pytest
import torch

from agents.losses import gaussian_log_prob, ppo_policy_loss, traced


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
