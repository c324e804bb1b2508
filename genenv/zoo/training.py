"""The training loop that the recipes of the zoo share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
Progress = Callable[[int, int, float], None]
"""Called as progress(step, num_steps, loss)."""


class WeightAverage:
    """Exponential moving average of a network's parameters and buffers, the weights that are shipped.

    Buffers of whole numbers or with infinities are constants, and stay as they are.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.average = {
            name: value.detach().clone()
            for name, value in model.state_dict().items()
            if value.is_floating_point() and value.isfinite().all()
        }

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average towards `model`; the decay warms up so that early weights are forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        values = model.state_dict()
        for name, average in self.average.items():
            average.lerp_(values[name], 1 - decay)


class CodebookAverage:
    """Moves a codebook's entries (V, D) to the moving average of the vectors that chose them.

    van den Oord et al. 2017, appendix A.1; entries that nothing uses are moved onto vectors of the batch.
    """

    def __init__(self, codebook: Tensor):
        self.codebook = codebook
        self.usage, self.sums = torch.zeros(len(codebook)), torch.zeros_like(codebook)

    def start(self, vectors: Tensor) -> None:
        """Begins anew from random ones of the vectors (M, D)."""
        self.codebook.copy_(self._some(vectors))
        self.usage.fill_(1.0)
        self.sums.copy_(self.codebook)

    def update(self, vectors: Tensor, codes: Tensor, revive: bool) -> None:
        """Takes in vectors (M, D) and the entries (M,) that they chose."""
        one_hot = F.one_hot(codes, len(self.codebook)).float()
        self.usage.lerp_(one_hot.sum(0), 0.01)
        self.sums.lerp_(one_hot.T @ vectors, 0.01)
        if revive:
            dead = self.usage < 0.1 * self.usage.mean()
            fresh = self._some(vectors)
            self.sums[dead], self.usage[dead] = fresh[dead] * self.usage.mean(), self.usage.mean()
        self.codebook.copy_(self.sums / self.usage.clamp(min=1e-5)[:, None])

    def _some(self, vectors: Tensor) -> Tensor:
        return vectors[torch.randperm(len(vectors))[: len(self.codebook)]]


def _cosine(optimiser: torch.optim.Optimizer, num_steps: int, warmup: int = 100):
    """Linear warm-up, then a cosine to 0."""
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, num_steps - warmup)
    rise = torch.optim.lr_scheduler.LinearLR(optimiser, 0.01, total_iters=warmup)
    return torch.optim.lr_scheduler.SequentialLR(optimiser, [rise, decay], [warmup])


def fit(
    model: Model,
    optimiser: torch.optim.Optimizer,
    loss_of: Callable[[int], Tensor],
    num_steps: int,
    average_decay: float,
    progress: Progress | None,
    max_gradient: float = math.inf,
) -> Model:
    """Minimises loss_of(step) and returns the model with its averaged weights, frozen."""
    schedule = _cosine(optimiser, num_steps)
    average = WeightAverage(model, average_decay)
    for step in range(num_steps):
        loss = loss_of(step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_gradient)
        optimiser.step()
        schedule.step()
        average.update(model, step)
        if progress is not None:
            progress(step + 1, num_steps, loss.item())
    model.load_state_dict(average.average, strict=False)  # all but the constants
    return model.eval().requires_grad_(False)
