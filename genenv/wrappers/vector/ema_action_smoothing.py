"""Smooths the actions of an episode, batched."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv, VectorWrapper
from torch import Tensor

from genenv.wrappers.ema_action_smoothing import checked_decay
from genenv.wrappers.vector.base import GenVectorWrapper


class EMAActionSmoothing(GenVectorWrapper):
    """m_t = decay m_{t-1} + (1 - decay) a_t with m_0 = a_0, restarted with every episode (AdaGen, action smoothing).

    The average is taken of the actions, before they move the hand-crafted schedule. Since it is linear this equals
    the published order, which smooths the sum of an action and an inversely smoothed schedule.

    Args:
        env: a GenVectorEnv or wrappers around one.
        decay: in [0, 1); 0 leaves the actions as they are.
    """

    def __init__(self, env: VectorEnv, decay: float):
        super().__init__(env)
        self.decay = checked_decay(decay)
        if not self._inner.actions.field.dtype.is_floating_point:
            raise ValueError(f"actions of {env} are choices, which have no moving average; use smoothing=0")
        self._average: Tensor | None = None

    def step(self, actions: Tensor | np.ndarray) -> tuple[Any, Any, Any, Any, dict]:
        """Takes a step with the smoothed actions (N, ...)."""
        actions = self._inner.check_actions(actions)
        if self._average is not None and self._inner.current_step > 0:
            actions = self._next(self._average.to(actions), actions)
        result = self.env.step(actions)
        self._average = actions.clone()  # the caller may reuse its tensor
        return result

    def smoothed(self, actions: Tensor) -> Tensor:
        """Returns the smoothed actions (T, N, ...) of an episode's."""
        averages = [actions[0]]
        for action in actions[1:]:
            averages.append(self._next(averages[-1], action))
        return torch.stack(averages)

    def _next(self, average: Tensor, action: Tensor) -> Tensor:
        return torch.lerp(action, average, self.decay)


def smoothing_of(env: VectorEnv) -> list[EMAActionSmoothing]:
    """Returns the smoothing around an environment, the outermost first."""
    found = []
    while isinstance(env, VectorWrapper):
        if isinstance(env, EMAActionSmoothing) and env.decay:
            found.append(env)
        env = env.env
    return found
