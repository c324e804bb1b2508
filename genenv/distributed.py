"""Sums over the processes of a run; each is a plain value where there is only one."""

from __future__ import annotations

from torch import Tensor, distributed


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


def _initialised() -> bool:
    return distributed.is_available() and distributed.is_initialized()
