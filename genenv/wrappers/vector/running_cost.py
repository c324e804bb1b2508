"""Charges for what each decision costs, batched."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium.vector import VectorEnv

from genenv.vector_env import to_numpy
from genenv.wrappers.running_cost import checked_weight
from genenv.wrappers.vector.base import GenVectorWrapper


class RunningCost(GenVectorWrapper):
    """Subtracts weight * info[name] from the reward of every decision.

    Args:
        env: a GenVectorEnv or wrappers around one.
        name: of a number (N,) that `info` holds after every decision, such as a sampler's diagnostic.
        weight: price of a unit.

    Raises:
        ValueError: if the weight is not finite, or, at the first step, if there is no such number.
    """

    def __init__(self, env: VectorEnv, name: str, weight: float = 1.0):
        super().__init__(env)
        self.name, self.weight = name, checked_weight(weight)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict]:
        """Takes a step; the one that resets under "NextStep" costs nothing."""
        observation, paid, terminated, truncated, info = self.env.step(actions)
        final = info.get("final_info", info)
        if final:
            if self.name not in final:
                known = ", ".join(name for name in final if not name.startswith("_"))
                raise ValueError(f"name must be one of {known}, got {self.name!r}")
            cost = self.weight * torch.as_tensor(final[self.name]).float()
            paid = paid - (to_numpy(cost) if self._inner.output == "numpy" else cost)
        return observation, paid, terminated, truncated, info
