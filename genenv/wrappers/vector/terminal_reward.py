"""Pays a reward for the finished images, batched."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium.vector import VectorEnv

from genenv.protocols import Reward
from genenv.rewards.mixture import as_mixture
from genenv.vector_env import to_numpy
from genenv.wrappers.vector.base import GenVectorWrapper, finished


class TerminalReward(GenVectorWrapper):
    """Pays `reward(images, context)` to every image at step T and 0 before.

    Args:
        env: a GenVectorEnv or wrappers around one.
        reward: judges images (N, C, H, W) of contexts (N,), the whole batch at once.

    Raises:
        ValueError: if the reward compares images with each other and needs more of them.
    """

    def __init__(self, env: VectorEnv, reward: Reward):
        super().__init__(env)
        self.reward = as_mixture(reward)
        self.reward.check_number(env.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Starts the episodes; with a seed, a reward that remembers earlier batches forgets them."""
        result = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self.reward.reset()
        return result

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict]:
        """Takes a step; at T the infos of the finished episode hold each component as `reward/<name>` (N,)."""
        observation, paid, terminated, truncated, info = self.env.step(actions)
        final = finished(info)
        if final is not None:
            device = self._inner.device
            judged = (torch.as_tensor(final[name], device=device) for name in ("image", "context", "group"))
            with torch.no_grad():
                total, parts = self.reward.judge(*judged)
            entries = {f"reward/{name}": value for name, value in parts.items()}
            entries |= {
                f"_{name}": torch.ones(len(total), dtype=torch.bool, device=device) for name in entries
            }
            if self._inner.output == "numpy":
                total, entries = to_numpy(total), to_numpy(entries)
            paid = paid + total
            final.update(entries)
        return observation, paid, terminated, truncated, info
