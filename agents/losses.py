"""Losses of the reference agents: pure functions of tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gaussian_log_prob(action: Tensor, mean: Tensor, std: Tensor | float) -> Tensor:
    """Returns the log-density (..., ) of actions (..., A) under N(mean, std^2), summed over A; std may be (..., A)."""
    std = torch.as_tensor(std, device=action.device).to(action.dtype).expand_as(action)
    return -(((action - mean) / std).square() / 2 + std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)


def traced(increments: Tensor, decay: float) -> Tensor:
    """Returns sum_{j >= k} decay^(j - k) increments_j, (T, N): what a trace credits decision k with."""
    total, credits = torch.zeros_like(increments[0]), []
    for increment in increments.flip(0):
        total = increment + decay * total
        credits.append(total)
    return torch.stack(credits[::-1])


def ppo_policy_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Returns -min(r A, clip(r, 1 - clip, 1 + clip) A) of each action (Schulman et al. 2017, eq. 7), to be averaged."""
    ratio = (log_prob - old_log_prob).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantage, clipped * advantage)


def k3(log_prob: Tensor, reference: Tensor) -> Tensor:
    """Returns exp(d) - d - 1 for d = reference - log_prob, of any shape: never negative, and 0 where both agree.

    Its mean over the policy's own samples is KL(policy || reference) (Schulman 2020, "Approximating KL divergence").
    """
    difference = reference - log_prob
    return difference.exp() - difference - 1


def categorical_entropy(log_prob: Tensor) -> Tensor:
    """Returns the entropy (...) in nats of log-probabilities (..., V)."""
    return -(log_prob.exp() * log_prob).sum(-1)
