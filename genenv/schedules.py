"""Schedule parameters: their legal ranges, their hand-crafted values, and how an action moves them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Bijector:
    """A monotone map from the real line to a parameter's legal range, and back.

    Attributes:
        forward: real line -> (low, high).
        inverse: (low, high) -> real line.
        low, high: the legal range, in physical units.
    """

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    low: float
    high: float


def _inverse_softplus(y: Tensor) -> Tensor:
    return y + torch.log(-torch.expm1(-y))


UNIT = Bijector(torch.sigmoid, torch.logit, 0.0, 1.0)
POSITIVE = Bijector(F.softplus, _inverse_softplus, 0.0, math.inf)


def scaled_unit(high: float) -> Bijector:
    """Returns the map onto (0, high), a sigmoid times `high`."""
    return Bijector(lambda x: high * torch.sigmoid(x), lambda y: torch.logit(y / high), 0.0, high)


@dataclasses.dataclass(frozen=True)
class ScheduleParam:
    """One knob of a generator.

    Attributes:
        name: the key under which a sampler receives it.
        bijector: its legal range.
        static: (T,) float64, the hand-crafted schedule in physical units.
        span: how far a unit action moves it, in the bijector's unbounded units.
    """

    name: str
    bijector: Bijector
    static: Tensor
    span: float = 1.0

    def __post_init__(self):
        inside = (self.static > self.bijector.low) & (self.static < self.bijector.high)
        if not bool(inside.all()):
            raise ValueError(
                f"{self.name}: the static schedule must lie inside ({self.bijector.low}, {self.bijector.high}), "
                f"got {self.static.tolist()}"
            )

    @property
    def limits(self) -> tuple[float, float]:
        """Bounds of a physical action: the legal range, or 10 times the largest static value where that is endless."""
        high = self.bijector.high
        return self.bijector.low, high if math.isfinite(high) else 10 * max(1.0, self.static.max().item())


class ActionDecoder:
    """Maps actions to schedule parameters.

    `residual`: p_t = g(g^-1(static_t) + span * a_t), with g the bijector (AdaGen, sec. on residual actions). A zero
    is the static schedule, bit for bit.
    `physical`: the action holds the parameters themselves.

    Args:
        params: the A schedule parameters.
        mode: "residual" or "physical".
        device: where actions arrive.
    """

    def __init__(
        self, params: Sequence[ScheduleParam], mode: str = "residual", device: torch.device | str = "cpu"
    ):
        if mode not in ("residual", "physical"):
            raise ValueError(f"action_mode must be 'residual' or 'physical', got {mode!r}")
        self.params, self.mode = tuple(params), mode
        self._static = torch.stack([p.static.double() for p in params], dim=1).to(device)  # (T, A)
        self._base = torch.stack([p.bijector.inverse(p.static.double()) for p in params], dim=1).to(device)
        self._span = torch.tensor([p.span for p in params], dtype=torch.float64, device=device)
        self._low, self._high = torch.tensor([p.limits for p in params], dtype=torch.float64, device=device).T

    def __call__(self, action: Tensor, t: int) -> dict[str, Tensor]:
        """Returns {name: (N,) float64} in physical units for actions (N, A) at decision t.

        Raises:
            ValueError: if an action is not finite, or a physical one is outside its parameter's limits.
        """
        action = action.double()
        legal = action.isfinite()
        if self.mode == "physical":
            legal &= (action >= self._low) & (action <= self._high)  # beyond, logits overflow
        if not bool(legal.all()):
            raise ValueError(self._complaint(action, legal))
        if self.mode == "physical":
            return {p.name: action[:, i] for i, p in enumerate(self.params)}
        moved = self._base[t] + self._span * action
        static = self._static[t].expand_as(action)
        return {
            p.name: torch.where(action[:, i] == 0, static[:, i], p.bijector.forward(moved[:, i]))
            for i, p in enumerate(self.params)
        }

    def encode(self, physical: Tensor, t: int) -> Tensor:
        """Returns the actions (N, A) whose parameters are `physical` (N, A): the inverse of a call."""
        physical = physical.double()
        if self.mode == "physical":
            return physical
        columns = [p.bijector.inverse(physical[:, i]) for i, p in enumerate(self.params)]
        return (torch.stack(columns, dim=1) - self._base[t]) / self._span

    def _complaint(self, action: Tensor, legal: Tensor) -> str:
        env, i = (~legal).nonzero()[0].tolist()
        param, value = self.params[i], action[env, i].item()
        finite = math.isfinite(value)
        rule = "must lie in [{}, {}]".format(*param.limits) if finite else "must be finite"
        return f"action of env {env}: {param.name} {rule}, got {value}"


def constant(value: float, horizon: int) -> Tensor:
    """Returns the same value at each of `horizon` decisions, (T,) float64."""
    return torch.full((horizon,), value, dtype=torch.float64)


def progress(horizon: int, offset: float) -> Tensor:
    """Returns (t + offset) / T for t = 0 ... T-1, (T,) float64."""
    return (torch.arange(horizon, dtype=torch.float64) + offset) / horizon


def cosine(horizon: int) -> Tensor:
    """Returns MaskGIT's mask ratio after each decision, cos(pi/2 (t + 1 - 1e-3) / T) (Chang et al. 2022, sec. 3.3)."""
    return torch.cos(torch.pi / 2 * progress(horizon, 1 - 1e-3))


def linear_decay(horizon: int) -> Tensor:
    """Returns 1 - (t + 1 - 1e-3) / T: MaskGIT's re-masking temperature as in AdaGen."""
    return 1 - progress(horizon, 1 - 1e-3)


def linear_rise(peak: float, horizon: int) -> Tensor:
    """Returns peak (t + 1e-3) / T: MaskGIT's guidance as in AdaGen."""
    return peak * progress(horizon, 1e-3)
