"""One image at a time, in Gymnasium's NumPy form."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from genenv.vector_env import RENDER_FPS, RENDER_MODES, to_numpy, to_tensor, unwrapped


class GenEnv(gym.Env):
    """The NumPy view of a vector environment of one image; it has no dynamics of its own.

    Args:
        vector_env: a GenVectorEnv of one image with autoreset disabled, or vector wrappers around one.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": RENDER_FPS}  # noqa: RUF012

    def __init__(self, vector_env: VectorEnv):
        inner = unwrapped(vector_env)
        if inner.num_envs != 1:
            raise ValueError(f"GenEnv is the view of one environment, got num_envs={inner.num_envs}")
        if inner.autoreset_mode is not AutoresetMode.DISABLED:
            raise ValueError(f"GenEnv needs autoreset_mode='Disabled', got {inner.autoreset_mode.value!r}")
        self.vector_env, self._inner = vector_env, inner
        self.observation_space = vector_env.single_observation_space
        self.action_space = vector_env.single_action_space
        self.render_mode = inner.render_mode

    @property
    def sampler(self):
        """The generator."""
        return self._inner.sampler

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode; the options are those of `GenVectorEnv.reset`, and a refused call changes nothing."""
        observation, info = self.vector_env.reset(seed=seed, options=options)
        if seed is not None:
            super().reset(seed=int(self._inner.rng.seeds[0]))
        return _first(observation), _first(info)

    def step(
        self, action: np.ndarray | np.integer
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Takes one decision with an action of the action space, such as (A,) of a schedule."""
        observation, reward, terminated, truncated, info = self.vector_env.step(self.batch(action))
        info = {name: value for name, value in info.items() if not name.startswith("_")}
        return (
            _first(observation),
            float(reward[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            _first(info),
        )

    def batch(self, action: np.ndarray | np.integer) -> Tensor:
        """Returns an action as the vector environment's (1, ...); ValueError for a wrong shape."""
        action, expected = np.asarray(action), self.action_space.shape
        if action.shape != expected:
            raise ValueError(f"action must have shape {expected}, got {action.shape}")
        if np.issubdtype(self.action_space.dtype, np.floating):
            action = action.astype(np.float32)
        return to_tensor(action).to(self._inner.device)[None]

    def render(self) -> np.ndarray | None:
        """Draws the partial result beside its open places, (H', W', 3) uint8."""
        frames = self._inner.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Frees what the vector environment holds."""
        self.vector_env.close()


def _first(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value[0] for name, value in to_numpy(batch).items()}
