"""Flattens observations, batched."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor
from torch.nn import functional as F

from genenv.wrappers.vector.base import GenVectorWrapper


class FlattenObservation(GenVectorWrapper):
    """Gives observations as one float32 vector an image, for networks that take nothing else.

    The entries follow each other in the order of the space, arrays row by row and choices one-hot: the numbers of
    `gymnasium.spaces.flatten`. The last observations under "SameStep", in `info["final_obs"]`, are flat too.

    Args:
        env: a GenVectorEnv or wrappers around one, with torch or NumPy output, in any autoreset mode.

    Raises:
        ValueError: if the observations are flat already, or hold something else than arrays and choices.
    """

    def __init__(self, env: VectorEnv):
        super().__init__(env)
        space = env.single_observation_space
        if not isinstance(space, spaces.Dict):
            raise ValueError(f"the observation space must be a Dict, got {space}")
        for name, entry in space.items():
            if not isinstance(entry, spaces.Box | spaces.Discrete):
                raise ValueError(f"observation {name!r} must be a Box or Discrete, got {entry}")
        self._entries = dict(space.items())
        flat = spaces.flatten_space(space)
        assert isinstance(flat, spaces.Box)
        low, high = (bound.astype(np.float32) for bound in (flat.low, flat.high))
        self.single_observation_space = spaces.Box(low, high, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Starts an episode; the observations are (N, D)."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._flat(observation), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict]:
        """Takes a step; the observations are (N, D)."""
        observation, reward, terminated, truncated, info = self.env.step(actions)
        if "final_obs" in info:
            info["final_obs"] = self._flat(info["final_obs"])
        return self._flat(observation), reward, terminated, truncated, info

    def _flat(self, observation: dict[str, Any]) -> Any:
        flat = torch.cat([_columns(observation[n], entry) for n, entry in self._entries.items()], dim=1)
        return flat.numpy() if self._inner.output == "numpy" else flat


def _columns(value: Any, entry: spaces.Space) -> Tensor:
    """Returns an entry (N, ...) as (N, K) float32."""
    value = torch.as_tensor(value)
    if isinstance(entry, spaces.Discrete):
        value = F.one_hot(value - int(entry.start), int(entry.n))
    return value.reshape(len(value), -1).float()
