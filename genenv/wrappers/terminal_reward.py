"""Pays a reward for the finished image."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch

from genenv.protocols import Reward
from genenv.rewards.mixture import as_mixture
from genenv.vector_env import to_numpy


class TerminalReward(gym.Wrapper):
    """Pays `reward(image, context)` at the end of an episode and 0 before.

    A reward that compares images with each other sees a batch of one here; use the vector environment for those.

    Args:
        env: a GenEnv or wrappers around one.
        reward: judges a batch of images (1, C, H, W) of contexts (1,), on the CPU.

    Raises:
        ValueError: if the reward compares images with each other and needs more of them.
    """

    def __init__(self, env: gym.Env, reward: Reward):
        super().__init__(env)
        self.reward = as_mixture(reward)
        self.reward.check_number(1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Starts an episode; with a seed, a reward that remembers earlier images forgets them."""
        result = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self.reward.reset()
        return result

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """Takes a step; `info["reward/<name>"]` holds each component at the end."""
        observation, paid, terminated, truncated, info = self.env.step(action)
        if "image" in info:
            total, parts = self.reward.judge(
                *(torch.as_tensor(info[k])[None] for k in ("image", "context", "group"))
            )
            paid = float(paid) + float(total[0])
            info |= {f"reward/{name}": value[0] for name, value in to_numpy(parts).items()}
        return observation, float(paid), terminated, truncated, info
