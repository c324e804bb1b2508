"""What an action is: how it looks to an agent, and the command that it gives to a sampler."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genenv.fields import Field, choice
from genenv.protocols import Observation
from genenv.rng import BatchRng, Purpose, categorical
from genenv.schedules import ScheduleParam, handcrafted
from genenv.solvers import per_image

RESIDUAL_LIMIT = 1000.0
"""Largest residual action: beyond, guidance weights and temperatures leave what networks in half precision survive."""

DEVIATION_LIMIT = 5.0
"""Largest deviation that an agent's space holds: normal numbers are beyond once in 1.7 million."""

Schedule = dict[str, Tensor]
"""The command of a schedule: {name: (N,) float64}, parameters in physical units."""


class ScheduleActions:
    """Actions that are schedule parameters.

    `residual`: p_t = g(g^-1(static_t) + span * a_t), with g the bijector (AdaGen, sec. on residual actions). A zero
    is the static schedule, bit for bit. Where that stands at an end of the range, an action that points out of it
    changes nothing, and another moves as from the parameter's margin inside: by g(g^-1(inside_t) + span * a_t) -
    inside_t from the end.
    `physical`: the action holds the parameters themselves.

    Args:
        params: the A schedule parameters.
        mode: "residual" or "physical".
        device: where actions arrive.

    Attributes:
        field: the unit box, or the parameters' limits.
        legal: what is accepted: up to 1,000 units, or the limits.
        horizon: decisions T.
    """

    needs = ()

    def __init__(
        self, params: Sequence[ScheduleParam], mode: str = "residual", device: torch.device | str = "cpu"
    ):
        if mode not in ("residual", "physical"):
            raise ValueError(f"action_mode must be 'residual' or 'physical', got {mode!r}")
        self.params, self.mode, self.horizon = tuple(params), mode, len(params[0].static)
        shape, limits = (len(self.params),), [p.limits for p in self.params]
        if mode == "residual":
            self.field = Field(shape, torch.float32, -1.0, 1.0)
            limits = [(-RESIDUAL_LIMIT, RESIDUAL_LIMIT)] * len(self.params)
        low, high = zip(*limits, strict=True)
        self.legal = Field(shape, torch.float32, low, high)
        if mode == "physical":
            self.field = self.legal
        self._static = handcrafted(self.params).to(device)  # (T, A)
        inside = [p.inside.double() for p in self.params]
        base = [p.bijector.inverse(values) for p, values in zip(self.params, inside, strict=True)]
        self._base = torch.stack(base, dim=1).to(device)
        self._shift = self._static - torch.stack(inside, dim=1).to(device)  # not 0 at ends of the range
        self._end = torch.stack([p.end for p in self.params], dim=1).to(device)  # (T, A)
        self._span = torch.tensor([p.span for p in self.params], dtype=torch.float64, device=device)
        self._low, self._high = torch.tensor(limits, dtype=torch.float64, device=device).T

    def __call__(self, action: Tensor, t: int) -> Schedule:
        """Returns {name: (N,) float64} in physical units for actions (N, A) at decision t.

        Raises:
            ValueError: if an action is not finite, or outside what is legal.
        """
        action = action.double()
        legal = (action >= self._low) & (action <= self._high)  # False where not a number
        if not bool(legal.all()):
            raise ValueError(self._complaint(action, legal))
        if self.mode == "physical":
            return {p.name: action[:, i] for i, p in enumerate(self.params)}
        moved = self._base[t] + self._span * action
        static = self._static[t].expand_as(action)
        stays = (action == 0) | (self._end[t] * action > 0)  # or out of the range, from its end
        command = {}
        for i, p in enumerate(self.params):
            value = p.bijector.forward(moved[:, i]) + self._shift[t, i]
            value = value.clamp(p.bijector.low, p.bijector.high)  # by rounding it may lie outside
            command[p.name] = torch.where(stays[:, i], static[:, i], value)
        return command

    def report(self, command: Schedule) -> dict[str, Tensor]:
        """Returns {"schedule/<name>": (N,) float32}."""
        return {f"schedule/{name}": value.float() for name, value in command.items()}

    def encode(self, physical: Tensor, t: int) -> Tensor:
        """Returns the actions (N, A) float64 whose parameters are `physical` (N, A): the inverse of a call.

        Where no action has such a parameter, the number is not finite.
        """
        physical = physical.double()
        if self.mode == "physical":
            return physical
        columns = [p.bijector.inverse(physical[:, i] - self._shift[t, i]) for i, p in enumerate(self.params)]
        moved = (torch.stack(columns, dim=1) - self._base[t]) / self._span
        return torch.where(physical == self._static[t], 0.0, moved)

    def handcrafted(self, number: int, t: int) -> Tensor:
        """Returns the actions (number, A) that leave the hand-crafted schedule as it is at decision t.

        In residual mode they are 0; in physical mode they are float64, which the schedule itself is.
        """
        if self.mode == "residual":
            return torch.zeros(number, len(self.params), device=self._static.device)
        return self._static[t].expand(number, -1)

    def default(self, observation: Observation, rng: BatchRng) -> Tensor:
        """Returns the actions (N, A) of the hand-crafted schedule."""
        return self.handcrafted(len(rng.seeds), rng.step)

    def _complaint(self, action: Tensor, legal: Tensor) -> str:
        env, i = (~legal).nonzero()[0].tolist()
        name, value = self.params[i].name, action[env, i].item()
        if not math.isfinite(value):
            return f"action of env {env}: {name} must be finite, got {value}"
        low, high = self._low[i].item(), self._high[i].item()
        return f"action of env {env}: {name} must lie in [{low}, {high}], got {value}"


class TokenActions:
    """Actions that are the next token, one of V.

    Args:
        vocab_size: V.
    """

    needs = ("logits",)

    def __init__(self, vocab_size: int):
        self.field = self.legal = choice(vocab_size)
        self.vocab_size = vocab_size

    def __call__(self, action: Tensor, t: int) -> Tensor:
        """Returns the tokens (N,) int64 of any type of whole numbers; ValueError for one that does not exist."""
        legal = (action >= 0) & (action < self.vocab_size)
        if not bool(legal.all()):
            env = int((~legal).nonzero()[0])
            raise ValueError(
                f"action of env {env}: the token must lie in [0, {self.vocab_size - 1}], got {action[env].item()}"
            )
        return action.long()  # bytes would select as a mask does

    def report(self, command: Tensor) -> dict[str, Tensor]:
        """Returns {"token": (N,)}."""
        return {"token": command}

    def default(self, observation: Observation, rng: BatchRng) -> Tensor:
        """Returns the tokens (N,) that the generator draws by its "logits" (N, V)."""
        return categorical(observation["logits"], rng.uniform(purpose=Purpose.POLICY))


class LatentActions:
    """Actions that are the next latents.

    Args:
        shape: (C, h, w).
        limit: largest absolute value.
    """

    needs = ("mean", "std")

    def __init__(self, shape: tuple[int, ...], limit: float):
        self.field = self.legal = Field(shape, torch.float32, -limit, limit)

    def __call__(self, action: Tensor, t: int) -> Tensor:
        """Returns the latents (N, C, h, w); ValueError for one that is not a number, or too large."""
        _check_size("latents", action, self.legal)
        return action

    def report(self, command: Tensor) -> dict[str, Tensor]:
        """Returns {"latent_norm": (N,)}, the root mean square of each latent."""
        return {"latent_norm": _root_mean_square(command)}

    def default(self, observation: Observation, rng: BatchRng) -> Tensor:
        """Returns the latents (N, C, h, w) that the generator draws around its "mean", with its "std" (N, 1)."""
        noise = _noise(self.field, rng)
        return observation["mean"] + per_image(observation["std"], noise) * noise


@dataclasses.dataclass(frozen=True)
class Deviation:
    """The command of next latents by how far they are from the mean that the generator gives them.

    Attributes:
        value: (N, C, h, w), in standard deviations of the generator's transition.
    """

    value: Tensor


class DeviationActions:
    """Actions that are the deviation of the next latents from the generator's mean, in its standard deviations.

    Zeros are the mean, standard normal numbers the generator itself.

    Args:
        shape: (C, h, w).

    Attributes:
        field: up to `DEVIATION_LIMIT`.
        legal: up to `RESIDUAL_LIMIT`.
    """

    needs = ()

    def __init__(self, shape: tuple[int, ...]):
        self.field = Field(shape, torch.float32, -DEVIATION_LIMIT, DEVIATION_LIMIT)
        self.legal = Field(shape, torch.float32, -RESIDUAL_LIMIT, RESIDUAL_LIMIT)

    def __call__(self, action: Tensor, t: int) -> Deviation:
        """Returns the deviations (N, C, h, w); ValueError for one that is not a number, or too large."""
        _check_size("deviations", action, self.legal)
        return Deviation(action.float())

    def report(self, command: Deviation) -> dict[str, Tensor]:
        """Returns {"deviation_norm": (N,)}, the root mean square of each deviation."""
        return {"deviation_norm": _root_mean_square(command.value)}

    def default(self, observation: Observation, rng: BatchRng) -> Tensor:
        """Returns the deviations (N, C, h, w) that the generator draws: standard normal numbers."""
        return _noise(self.field, rng)


def _check_size(name: str, action: Tensor, legal: Field) -> None:
    """Raises a ValueError that names the first env with a number that is none, or larger than what is legal."""
    assert isinstance(legal.high, float)
    limit = legal.high
    inside = (action.abs() <= limit).flatten(1)
    if not bool(inside.all()):
        env = int((~inside.all(1)).nonzero()[0])
        worst = action[env].flatten()[~inside[env]][0].item()
        raise ValueError(f"action of env {env}: {name} must lie in [{-limit:g}, {limit:g}], got {worst}")


def _root_mean_square(value: Tensor) -> Tensor:
    return value.flatten(1).square().mean(1).sqrt()


def _noise(field: Field, rng: BatchRng) -> Tensor:
    """Returns the standard normal numbers (N, ...) of a decision's policy."""
    return rng.normal(*field.shape, purpose=Purpose.POLICY).float()
