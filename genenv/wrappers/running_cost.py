"""Charges for what each decision costs."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym


class RunningCost(gym.Wrapper):
    """Subtracts weight * info[name] from the reward of every decision.

    Args:
        env: a GenEnv or wrappers around one.
        name: of a number that `info` holds after every decision, such as a sampler's diagnostic.
        weight: price of a unit.

    Raises:
        ValueError: if the weight is not finite, or, at the first step, if there is no such number.
    """

    def __init__(self, env: gym.Env, name: str, weight: float = 1.0):
        super().__init__(env)
        self.name, self.weight = name, checked_weight(weight)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """Takes a step."""
        observation, paid, terminated, truncated, info = self.env.step(action)
        if self.name not in info:
            raise ValueError(f"name must be one of {', '.join(info)}, got {self.name!r}")
        return observation, float(paid) - self.weight * float(info[self.name]), terminated, truncated, info


def checked_weight(weight: float) -> float:
    """Returns a finite weight, or raises ValueError."""
    if not math.isfinite(weight):
        raise ValueError(f"weight must be finite, got {weight}")
    return float(weight)
