"""Sums and rows over the processes of a run; each is a plain value where there is only one."""

from __future__ import annotations

import torch
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


def gather(values: Tensor) -> tuple[Tensor, slice]:
    """Returns the tensors of all processes, joined along the first axis, and which rows are this one's.

    They may differ in length.
    """
    if num_ranks() == 1:
        return values, slice(0, len(values))
    lengths = [torch.zeros((), dtype=torch.int64, device=values.device) for _ in range(num_ranks())]
    distributed.all_gather(lengths, torch.tensor(len(values), device=values.device))
    sizes, rank = [int(length) for length in lengths], distributed.get_rank()
    padded = torch.cat([values, values.new_zeros(max(sizes) - len(values), *values.shape[1:])])
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    first = sum(sizes[:rank])
    joined = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return joined, slice(first, first + len(values))


def _initialised() -> bool:
    return distributed.is_available() and distributed.is_initialized()
