"""Smooths the actions of an episode."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class EMAActionSmoothing(gym.Wrapper):
    """m_t = decay m_{t-1} + (1 - decay) a_t with m_0 = a_0 (AdaGen, action smoothing).

    Args:
        env: an environment with a Box action space.
        decay: in [0, 1); 0 leaves the actions as they are.
    """

    def __init__(self, env: gym.Env, decay: float):
        super().__init__(env)
        self.decay = checked_decay(decay)
        self._average: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Starts an episode; its first action is not smoothed."""
        result = self.env.reset(seed=seed, options=options)
        self._average = None
        return result

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict]:
        """Takes a step with the smoothed action (A,)."""
        action = np.array(action, np.float32)  # a copy: the caller may reuse its array
        if self._average is not None:
            action = self.decay * self._average + np.float32(1 - self.decay) * action
        result = self.env.step(action)
        self._average = action
        return result


def checked_decay(decay: float) -> float:
    """Returns a decay in [0, 1), or raises ValueError."""
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"smoothing must be in [0, 1), got {decay}")
    return float(decay)
