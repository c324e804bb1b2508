"""Losses of the reference agents: pure functions of tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gaussian_log_prob(action: Tensor, mean: Tensor, std: float) -> Tensor:
    """Returns the log-density (..., ) of actions (..., A) under N(mean, std^2), summed over A."""
    constant = math.log(std) + 0.5 * math.log(2 * math.pi)
    return -((action - mean) / std).square().sum(-1) / 2 - action.shape[-1] * constant


def ppo_policy_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Returns -min(r A, clip(r, 1 - clip, 1 + clip) A) of each action (Schulman et al. 2017, eq. 7), to be averaged."""
    ratio = (log_prob - old_log_prob).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantage, clipped * advantage)
