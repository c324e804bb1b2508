"""Density and coverage (Naeem et al. 2020)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def density_coverage(generated: Tensor, real: Tensor, k: int = 5) -> tuple[float, float]:
    """Returns density and coverage (Naeem et al. 2020, eq. 3 and 4) of features (N, D) and (M, D).

    Around each real feature lies a ball that reaches its k-th nearest real neighbour. Density is the mean number of
    balls that hold a generated feature, over k; coverage the share of balls that hold at least one.
    """
    if len(real) <= k:
        raise ValueError(f"coverage needs more than k={k} real features, got {len(real)}")
    # Without a matrix product, whose rounding would decide who lies on the edge of a ball.
    distance = functools.partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")
    radius = distance(real, real).kthvalue(k + 1, dim=1).values  # the first neighbour is the feature itself
    inside = distance(generated, real) <= radius
    return inside.float().sum(1).mean().item() / k, inside.any(0).float().mean().item()
