"""The types that the parts agree on. Read this first.

Axes: N images, T decisions, A schedule parameters, C x H x W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor

from genenv.rng import BatchRng
from genenv.schedules import ScheduleParam

Observation: TypeAlias = dict[str, Tensor]
Context: TypeAlias = Tensor
"""What an image is asked to show: class labels (N,) int64."""

Actor: TypeAlias = Callable[[Observation], Tensor]
"""Maps a batch of observations to actions (N, A)."""

S = TypeVar("S")


@dataclasses.dataclass(frozen=True)
class Field:
    """One entry of an observation: its shape for one image, its type and its bounds."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    low: float
    high: float

    def zeros(self, number: int, device: torch.device) -> Tensor:
        """Returns the entry of `number` images before anything is known of them."""
        return torch.zeros(number, *self.shape, dtype=self.dtype, device=device)


class Sampler(Protocol[S]):
    """A generation paradigm with its loop opened: one `advance` for each decision of the policy.

    States are frozen dataclasses of tensors with leading axis N, so an old state stays valid and may be advanced
    again. No method draws from anything but the `rng` it is given.
    """

    params: tuple[ScheduleParam, ...]
    horizon: int
    num_classes: int
    image_shape: tuple[int, int, int]
    stochastic: bool
    """Whether `advance` draws: only then is there a choice of next states for the same action."""
    fields: dict[str, Field]
    """What `observe` returns: the partial result under its own name, and "features" (L, D)."""

    def start(self, context: Context, rng: BatchRng) -> S:
        """Returns the state before the first decision."""
        ...

    def observe(self, state: S, names: Sequence[str]) -> Observation:
        """Returns the named fields. Makes no network call."""
        ...

    def advance(self, state: S, params: dict[str, Tensor], rng: BatchRng) -> S:
        """Returns the state after one decision with schedule parameters {name: (N,)} in physical units."""
        ...

    def decode(self, state: S) -> Tensor:
        """Returns the images (N, C, H, W) float32 in [0, 1] that the state stands for, at any t."""
        ...

    def undecided(self, state: S) -> Tensor:
        """Returns how open each place still is, (N, h, w) in [0, 1], for rendering."""
        ...

    def diagnostics(self, state: S) -> dict[str, Tensor]:
        """Returns {name: (N,)} for `info`."""
        ...


@runtime_checkable
class Reward(Protocol):
    """Judges a batch of finished images."""

    def __call__(self, images: Tensor, context: Context) -> Tensor:
        """Returns (N,) float32 for images (N, C, H, W) in [0, 1]."""
        ...


@runtime_checkable
class StatefulReward(Reward, Protocol):
    """A reward that remembers earlier batches, such as moving feature moments."""

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors that restore the reward."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Restores what `state_dict` returned."""
        ...


@runtime_checkable
class ForgetfulReward(Reward, Protocol):
    """A reward that starts anew when its environment is seeded, so that equal seeds are paid equally."""

    def reset(self) -> None:
        """Forgets every batch."""
        ...
