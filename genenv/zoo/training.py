"""What the recipes of the zoo share: the training loop, averages, and samples to train judges on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genenv.rollout import run_episode
from genenv.tiers import PUBLISHED

Model = TypeVar("Model", bound=nn.Module)
Progress = Callable[[int, int, float], None]
"""Called as progress(step, num_steps, loss)."""
Labelled = tuple[Tensor, Tensor]
"""Images (N, 1, 8, 8) in [0, 1] and their labels (N,)."""


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


def augment(images: Tensor) -> Tensor:
    """Shifts each image by up to half a pixel, turns it by up to 10 degrees and scales it by up to 10 %."""
    n = len(images)
    angle = (torch.rand(n) - 0.5) * 0.35
    scale = 1 + (torch.rand(n) - 0.5) * 0.2
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift = (torch.rand(n, 2) - 0.5) * 0.25
    theta = torch.stack(
        [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def without_some(labels: Tensor, share: float, null: int) -> Tensor:
    """Returns labels (N,) of which a random share is the null class, for classifier-free guidance."""
    return labels.masked_fill(torch.rand(len(labels)) < share, null)


def random_schedules(backbone: str, generator: torch.Generator, num_images: int) -> Labelled:
    """Returns images of the backbone's MaskGIT under schedules drawn uniformly around the published one."""
    env = gym.make_vec(
        "AdaGen/MaskGIT-v0",
        num_envs=1024,
        backbone=backbone,
        schedule=PUBLISHED,
        reward="none",
        autoreset_mode="Disabled",
    )
    shape = env.action_space.shape
    assert shape is not None
    images, labels = [], []
    for first in range(0, num_images, shape[0]):
        episode = run_episode(env, lambda _: 2 * torch.rand(shape, generator=generator) - 1, seed=first)
        images.append(episode.images)
        labels.append(episode.context)
    return torch.cat(images), torch.cat(labels)
