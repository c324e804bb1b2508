"""The types that the parts agree on. Read this first.

Axes: N images, T decisions, A schedule parameters, C x H x W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor

from genenv.fields import Field
from genenv.rng import BatchRng

Observation: TypeAlias = dict[str, Tensor]
Context: TypeAlias = Tensor
"""What an image is asked to show: the number of a class or a prompt, (N,) int64."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """An actor's action with what it wants kept beside it.

    Attributes:
        action: (N, ...).
        extra: {name: (N, ...)}, such as the action's log-probability; `Episode.extras` collects it.
    """

    action: Tensor
    extra: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


Actor: TypeAlias = Callable[[Observation], Tensor | Decision]
"""Maps a batch of observations to actions (N, ...), or to a `Decision` that holds them."""

S = TypeVar("S")
C = TypeVar("C")


class Actions(Protocol[C]):
    """What an action is: how it looks to an agent, and which command it gives to a sampler.

    Attributes:
        field: the space in which an agent acts.
        legal: what is accepted, at least `field`.
        needs: entries of an observation from which `default` draws.
    """

    field: Field
    legal: Field
    needs: tuple[str, ...]

    def __call__(self, action: Tensor, t: int) -> C:
        """Returns the command of actions (N, ...) at decision t; ValueError names an env whose action is not legal."""
        ...

    def report(self, command: C) -> dict[str, Tensor]:
        """Returns {name: (N,)} of a command, for `info`."""
        ...

    def default(self, observation: Observation, rng: BatchRng) -> Tensor:
        """Returns the actions (N, ...) at decision `rng.step` where no agent acts.

        They are those of the hand-crafted schedule, or what the frozen generator draws, with `Purpose.POLICY`.
        """
        ...


class Sampler(Protocol[S, C]):
    """A generation paradigm with its loop opened: one `advance` for each decision of the policy.

    States are frozen dataclasses of tensors with leading axis N, so an old state stays valid and may be advanced
    again. No method draws from anything but the `rng` it is given, and only `start` draws with `Purpose.START`.

    Attributes:
        horizon: decisions T.
        num_contexts: what there is to show.
        image_shape: (C, H, W).
        stochastic: whether `advance` draws: only then is there a choice of next states for the same action.
        fields: what `observe` returns: the partial result under its own name, and what the generator predicts, such as
            "features" (L, D); see `genenv.fields.PREDICTED`.
    """

    horizon: int
    image_shape: tuple[int, int, int]
    stochastic: bool
    fields: dict[str, Field]

    @property
    def num_contexts(self) -> int:
        """How many contexts there are."""
        ...

    def actions(self, mode: str, device: torch.device) -> Actions[C]:
        """Returns how actions become commands, such as `genenv.actions.ScheduleActions`."""
        ...

    def start(self, context: Context, rng: BatchRng) -> S:
        """Returns the state before the first decision."""
        ...

    def observe(self, state: S, names: Sequence[str]) -> Observation:
        """Returns the named fields. Makes no network call."""
        ...

    def advance(self, state: S, command: C, rng: BatchRng) -> S:
        """Returns the state after one decision."""
        ...

    def decode(self, state: S) -> Tensor:
        """Returns the images (N, C, H, W) float32 in [0, 1] that the state stands for, at any t."""
        ...

    def undecided(self, state: S) -> Tensor:
        """Returns how open each place still is, (N, h, w) in [0, 1], for rendering."""
        ...

    def diagnostics(self, state: S) -> dict[str, Tensor]:
        """Returns {name: (N,)} for `info`, the same names at every decision."""
        ...


@runtime_checkable
class Previews(Protocol):
    """A sampler that can look ahead, beyond what `decode` shows of an unfinished image."""

    def preview(self, state: Any) -> Tensor:
        """Returns the images (N, C, H, W) float32 in [0, 1] that it expects at the end. It may call the network."""
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
