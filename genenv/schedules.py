"""Schedule parameters: their legal ranges and their hand-crafted values."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Sequence
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

MARGIN, WIDE_MARGIN = 1e-6, 0.05
"""Where a residual action starts from with a parameter that stands at an end of its range, where the bijector has no
inverse: so far inside, in parts of the range, or in units where that is endless.

From the first, which is that of AdaGen's code, a unit action hardly moves a parameter; from the second it takes a
guidance weight (span 2) from 0 to 0.27.
"""

SETTINGS = ("schedule", "guidance_weight", "mask_temperature", "token_temperature", "top_k", "top_p", "grid")
"""Keyword arguments of the ids that decide their hand-crafted schedule."""


@dataclasses.dataclass(frozen=True)
class Bijector:
    """A monotone map from the real line to the inside of a parameter's legal range, and back.

    Attributes:
        forward: real line -> (low, high).
        inverse: (low, high) -> real line.
        low, high: the legal range, in physical units; an end that is finite is legal too.
    """

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    low: float
    high: float


def _inverse_softplus(y: Tensor) -> Tensor:
    return y + torch.log(-torch.expm1(-y))


UNIT = Bijector(torch.sigmoid, torch.logit, 0.0, 1.0)
POSITIVE = Bijector(F.softplus, _inverse_softplus, 0.0, math.inf)


def _same(x: Tensor) -> Tensor:
    return x


REAL = Bijector(_same, _same, -math.inf, math.inf)


def _scaled_sigmoid(x: Tensor, high: float) -> Tensor:
    return high * torch.sigmoid(x)


def _scaled_logit(y: Tensor, high: float) -> Tensor:
    return torch.logit(y / high)


def scaled_unit(high: float) -> Bijector:
    """Returns the map onto (0, high), a sigmoid times `high`."""
    forward, inverse = (functools.partial(f, high=high) for f in (_scaled_sigmoid, _scaled_logit))
    return Bijector(forward, inverse, 0.0, high)


@dataclasses.dataclass(frozen=True)
class ScheduleParam:
    """One knob of a generator.

    Attributes:
        name: the key under which a sampler receives it.
        bijector: its legal range.
        static: (T,) float64, the hand-crafted schedule in physical units; may stand at an end of the range.
        span: how far a unit action moves it, in the bijector's unbounded units.
        margin: how far inside of an end of the range residual actions start, where the static schedule stands there.
    """

    name: str
    bijector: Bijector
    static: Tensor
    span: float = 1.0
    margin: float = MARGIN

    def __post_init__(self):
        low, high = self.bijector.low, self.bijector.high
        legal = self.static.isfinite() & (self.static >= low) & (self.static <= high)
        if not bool(legal.all()):
            raise ValueError(
                f"{self.name}: the static schedule must be finite and lie in [{low}, {high}], "
                f"got {self.static.tolist()}"
            )

    @property
    def end(self) -> Tensor:
        """(T,) float64: 1 where the static schedule stands at the high end of the range, -1 at the low one, else 0."""
        return (self.static == self.bijector.high).double() - (self.static == self.bijector.low).double()

    @property
    def inside(self) -> Tensor:
        """The static schedule (T,) with the ends of the range moved inside by the margin."""
        low, high = self.bijector.low, self.bijector.high
        return self.static - self.margin * (high - low if math.isfinite(high - low) else 1) * self.end

    @property
    def limits(self) -> tuple[float, float]:
        """Bounds of a physical action: the legal range, or 10 times the largest static value where that is endless."""
        low, high, far = self.bijector.low, self.bijector.high, 10 * max(1.0, self.static.abs().max().item())
        return low if math.isfinite(low) else -far, high if math.isfinite(high) else far


def residual_margins(params: Sequence[ScheduleParam], schedule: str | None) -> tuple[ScheduleParam, ...]:
    """Returns the parameters with the wide margin, so that actions move those that stand at an end of their range.

    Under a schedule that is asked for by name, the published one, they stay as they are: as in AdaGen's code.
    """
    return tuple(params if schedule else (dataclasses.replace(p, margin=WIDE_MARGIN) for p in params))


def handcrafted(params: Sequence[ScheduleParam]) -> Tensor:
    """Returns the hand-crafted schedule (T, A) float64 in physical units."""
    return torch.stack([param.static.double() for param in params], dim=1)


def setting(name: str, value: float | None, default: float, bijector: Bijector) -> float:
    """Returns a number that a hand-crafted schedule is made of, its default where the value is None.

    Raises:
        ValueError: if it is not a finite number in the parameter's legal range.
    """
    value = default if value is None else value
    number = isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if not number or not bijector.low <= value <= bijector.high:
        end = "]" if math.isfinite(bijector.high) else ")"
        raise ValueError(
            f"{name} must be a finite number in [{bijector.low:g}, {bijector.high:g}{end}, got {value!r}"
        )
    return float(value)


def constant_guidance(guidance_weight: float | None) -> float:
    """Returns a guidance weight that no action moves, 0 where it is None; ValueError unless finite and at least 0."""
    weight = 0.0 if guidance_weight is None else float(guidance_weight)
    if not 0 <= weight < math.inf:
        raise ValueError(f"guidance_weight must be finite and at least 0, got {guidance_weight}")
    return weight


def constant(value: float, horizon: int) -> Tensor:
    """Returns the same value at each of `horizon` decisions, (T,) float64."""
    return torch.full((horizon,), value, dtype=torch.float64)


def progress(horizon: int, offset: float) -> Tensor:
    """Returns (t + offset) / T for t = 0 ... T-1, (T,) float64."""
    return (torch.arange(horizon, dtype=torch.float64) + offset) / horizon


def cosine(horizon: int) -> Tensor:
    """Returns MaskGIT's mask ratio after each decision, cos(pi/2 (t + 1 - 1e-3) / T) (Chang et al. 2022, sec. 3.3)."""
    return torch.cos(torch.pi / 2 * progress(horizon, 1 - 1e-3))


def linear_decay(peak: float, horizon: int) -> Tensor:
    """Returns peak (1 - (t + 1 - 1e-3) / T): MaskGIT's re-masking temperature as in AdaGen."""
    return peak * (1 - progress(horizon, 1 - 1e-3))


def linear_rise(peak: float, horizon: int) -> Tensor:
    """Returns peak (t + 1e-3) / T: MaskGIT's guidance as in AdaGen."""
    return peak * progress(horizon, 1e-3)
