"""Which numbers a command's configuration takes.

A configuration is a frozen dataclass. Every number says its range, as in `clip: Annotated[float, ABOVE_ZERO] = 0.2`,
and `check` in `__post_init__` holds it to it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import typing
from typing import Any, TypeAlias

Steps: TypeAlias = tuple[tuple[int, float], ...]
"""A value that changes while a run goes on: (first iteration, value) in order."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to below `high`: `low` belongs to them unless it is `excluded`, `high` if it is `included`."""

    low: float
    high: float = math.inf
    excluded: bool = False
    included: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.excluded else value >= self.low
        below = value <= self.high if self.included else value < self.high
        return above and below  # infinity and NaN are in no range

    def __str__(self) -> str:
        if self.high < math.inf:
            first, last = "(" if self.excluded else "[", "]" if self.included else ")"
            return f"in {first}{self.low:g}, {self.high:g}{last}"
        return f"finite and {'above' if self.excluded else 'at least'} {self.low:g}"


NOT_NEGATIVE, ABOVE_ZERO = Range(0), Range(0, excluded=True)
AT_LEAST_1, AT_LEAST_2 = Range(1), Range(2)
FRACTION = Range(0, 1)
"""From 0 to below 1."""


def value_at(steps: Steps, iteration: int) -> float:
    """Returns the value of an iteration."""
    return [value for first, value in steps if first <= iteration][-1]


def check(config: Any) -> None:
    """Raises a ValueError that names the first field whose numbers are not in its range; None is in any that may be."""
    for name, hint in typing.get_type_hints(type(config), include_extras=True).items():
        hints = (hint, *typing.get_args(hint))  # or `Annotated[...] | None`
        found = [
            (each, m) for each in hints for m in getattr(each, "__metadata__", ()) if isinstance(m, Range)
        ]
        unset = type(None) in hints and getattr(config, name) is None
        if not found or unset:
            continue
        value, [(hint, allowed)] = getattr(config, name), found
        if typing.get_args(hint)[0] == Steps:
            firsts, numbers = [first for first, _ in value], [number for _, number in value]
            if firsts[:1] != [0] or any(b <= a for a, b in itertools.pairwise(firsts)):
                raise ValueError(
                    f"{name} must start at iteration 0 and its iterations must rise, got {value}"
                )
        else:
            numbers = [value]
        for number in numbers:
            if number not in allowed:
                raise ValueError(f"{name} must be {allowed}, got {number}")
