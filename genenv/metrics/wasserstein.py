"""The 2-Wasserstein distance between distributions of points."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genenv.solvers import noise_levels


def wasserstein(points: Tensor, others: Tensor) -> float:
    """Returns W2 of two samples of as many points: sorted on a line, matched by the cheapest assignment elsewhere.

    An assignment takes time of the third power of N: some seconds for 2,000 points.

    Args:
        points: (N, d).
        others: (N, d).

    Raises:
        ValueError: if the samples differ in number or dimension.
    """
    if points.shape != others.shape or points.ndim != 2:
        raise ValueError(f"both samples must be (N, d), got {tuple(points.shape)} and {tuple(others.shape)}")
    points, others = points.double(), others.double()
    if points.shape[1] == 1:
        return (points.sort(0).values - others.sort(0).values).square().mean().sqrt().item()
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(points, others).square()
    rows, columns = linear_sum_assignment(cost.numpy())
    return math.sqrt(cost[rows, columns].mean().item())


def normal_grid_error(levels: Tensor | Sequence[float]) -> float:
    """Returns W2 between N(0, 1) and what Euler's rule makes of N(0, 1 + sigma_0^2) on a grid of noise levels (K + 1,).

    The flow dx/d sigma = x sigma / (1 + sigma^2) is linear: a step h multiplies x by 1 - h sigma / (1 + sigma^2). The
    distance of two centred Gaussians is that of their standard deviations.

    Raises:
        ValueError: if the levels do not fall to 0.
    """
    grid = noise_levels(levels)
    factors = 1 + grid.diff() * grid[:-1] / (1 + grid[:-1].square())
    return abs(math.hypot(1, grid[0]) * factors.prod().abs().item() - 1)
