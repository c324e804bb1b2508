"""Sums over the processes of a run; each is a plain value where there is only one."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn


def num_ranks() -> int:
    """Returns the number of processes."""
    return distributed.get_world_size() if _initialised() else 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """Returns the sum of every process's tensor of one shape; a process alone gets its own back."""
    if num_ranks() == 1:
        return value
    total = value.clone()
    distributed.all_reduce(total)
    return total


def average_gradients(module: nn.Module) -> None:
    """Replaces a module's gradients by their mean over the processes."""
    ranks = num_ranks()
    if ranks == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = sum_over_ranks(torch.cat([g.flatten() for g in gradients])) / ranks
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _initialised() -> bool:
    return distributed.is_available() and distributed.is_initialized()
