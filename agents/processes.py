"""Several processes that train one run: who has which images, and what they sum up.

`torchrun --nproc-per-node 8 -m agents.adagen ...` starts them. Each generates its own part of the images; what
depends on all of them is summed, so that the numbers are those of one process.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn

from genenv.distributed import num_ranks, sum_over_ranks
from genenv.rng import MAX_SEED, training_seed

PATIENCE = datetime.timedelta(days=2)
"""The others wait as long for the first process, which evaluates alone."""


def start() -> None:
    """Joins the processes that torchrun started; does nothing in a process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # what device "cuda" then means
    distributed.init_process_group(timeout=PATIENCE)


def stop() -> None:
    """Leaves the others, so that the first process goes on alone."""
    if num_ranks() > 1:
        distributed.destroy_process_group()


def rank() -> int:
    """Returns the number of this process, from 0."""
    return distributed.get_rank() if num_ranks() > 1 else 0


def is_first() -> bool:
    """Returns whether this process writes files and talks to the user."""
    return rank() == 0


def own(total: int) -> range:
    """Returns which of `total` images are this process's: neighbours, numbers that differ by at most 1."""
    return range(rank() * total // num_ranks(), (rank() + 1) * total // num_ranks())


def group_seeds(run: int, images: int, groups: int, size: int) -> list[int]:
    """Returns the seeds of the images of this process's next groups; a group is the seeds of one quotient by its size.

    Args:
        run: seed of the run.
        images: that the run has had so far, of whole groups.
        groups: that all processes are to have next.
        size: images of a group.
    """
    first = -(-training_seed(run, 0) // size) + images // size
    numbers = [(first + group) % (MAX_SEED // size) for group in own(groups)]
    return [number * size + image for number in numbers for image in range(size)]


def own_decisions(rows: Tensor, total: int) -> Tensor:
    """Returns which of some decisions are of this process's images, numbered among these.

    Args:
        rows: (M,) int64, t * total + i for the decision of image i at step t.
        total: images of all processes.

    Returns:
        (M',) int64, t * N + n, with n the place of the image among the N of this process.
    """
    mine, steps, images = own(total), rows // total, rows % total
    kept = (images >= mine.start) & (images < mine.stop)
    return steps[kept] * len(mine) + images[kept] - mine.start


def mean(values: Tensor) -> Tensor:
    """Returns the mean over all elements of every process's tensor, float64; they may differ in size."""
    total, count = sum_over_ranks(
        torch.stack([values.double().sum(), values.new_tensor(values.numel()).double()])
    )
    return total / count


def mean_rows(values: Tensor) -> Tensor:
    """Returns the mean over the rows of every process's tensor (N, D), (D,) float64; they may differ in N."""
    count = values.new_tensor([float(len(values))], dtype=torch.float64)
    *total, number = sum_over_ranks(torch.cat([values.double().sum(0), count]))
    return torch.stack(total) / number


def standardise(values: Tensor) -> Tensor:
    """Returns values with mean 0 and standard deviation 1 over the tensors (N,) of all processes."""
    centred = values.double() - mean(values)
    count = sum_over_ranks(torch.tensor(float(len(values)), dtype=torch.float64, device=values.device))
    variance = sum_over_ranks(centred.square().sum()) / (count - 1)
    return (centred / (variance.sqrt() + 1e-8)).to(values.dtype)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces gradients by their sums over the processes; a parameter that has none counts as zero.

    A loss that is a sum over a process's images, divided by the number of all images, thus has the gradient of the
    mean over all.
    """
    if num_ranks() == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    flat = sum_over_ranks(torch.cat([g.flatten() for g in gradients]))
    for parameter, total in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
        parameter.grad = total.view_as(parameter)
