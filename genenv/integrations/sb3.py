"""Stable-Baselines3: the vector environment as a `VecEnv`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from genenv.protocols import Observation
from genenv.vector_env import unwrapped
from genenv.wrappers.vector import FlattenObservation

try:
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs
except ImportError:
    raise ImportError("genenv.integrations.sb3 needs Stable-Baselines3: pip install 'genenv[sb3]'") from None

EXACT_IN_FLOAT32 = 2**24
"""Every integer up to here survives the packing into float32."""
FLAT = ""
"""Name of the only entry of a flat observation."""


class GenVecEnv(VecEnv):
    """All images of a vector environment as the environments of one SB3 `VecEnv`.

    A step makes one copy of arrays from the device: the observation and the reward travel as one float32 tensor, at
    the end of an episode together with the finished observation and the reward's components. The check of the actions
    and a sampler's test for guidance may wait for the device besides. The infos are empty until then; at the end each
    holds `terminal_observation`, `episode` (`r`, `l`, `t`), `TimeLimit.truncated` (never) and the components
    `reward/<name>`. No Monitor is needed.

        env = GenVecEnv(gym.make_vec("AdaGen/MaskGIT-v0", num_envs=64))
        PPO("MultiInputPolicy", env, n_steps=32).learn(100_000)

    Args:
        vector_env: a GenVectorEnv or wrappers around one, with autoreset "SameStep" and output "torch".
        flatten: give the observation as one vector, for algorithms and wrappers that take no dictionary: CrossQ, ARS,
            `VecFrameStack`; the policy is then "MlpPolicy".

    Raises:
        ValueError: for any other environment.
    """

    def __init__(self, vector_env: VectorEnv, flatten: bool = False):
        inner = unwrapped(vector_env)
        if inner.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise ValueError(f"autoreset_mode must be 'SameStep' for SB3, got {inner.autoreset_mode.value!r}")
        if inner.output != "torch":
            raise ValueError(f"output must be 'torch' for SB3's adapter, got {inner.output!r}")
        for name, entry in _entries(vector_env.single_observation_space).items():
            largest = entry.n - 1 if isinstance(entry, spaces.Discrete) else np.max(getattr(entry, "high", 0))
            if np.issubdtype(entry.dtype, np.integer) and largest > EXACT_IN_FLOAT32:
                raise ValueError(
                    f"observation {name!r} must be at most {EXACT_IN_FLOAT32} to pass through float32 unchanged, "
                    f"got a space up to {largest}; leave it out with observe=..."
                )
        if flatten:
            vector_env = FlattenObservation(vector_env)
        space = vector_env.single_observation_space
        self.env, self._inner, self._entries = vector_env, inner, _entries(space)
        self.spec = vector_env.spec
        super().__init__(vector_env.num_envs, space, vector_env.single_action_space)
        self._actions = torch.zeros(0)
        self._start = time.monotonic()
        self._begin()

    def reset(self) -> VecEnvObs:
        """Starts an episode in every environment, with the seeds and options set since the last reset."""
        seeds = None if self._seeds[0] is None else [int(seed) for seed in self._seeds if seed is not None]
        observation, _ = self.env.reset(seed=seeds, options=self._merged_options())  # type: ignore[arg-type]
        self._reset_seeds()
        self._reset_options()
        self._begin()
        return self._unpack(_to_host(self._columns(observation)))[0]

    def step_async(self, actions: np.ndarray) -> None:
        """Takes the actions (N, ...) of the next step; a copy, so that the caller may reuse the array."""
        actions = np.asarray(actions, self.action_space.dtype)
        self._actions = torch.tensor(actions, device=self._inner.device)

    def step_wait(self) -> tuple[VecEnvObs, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Returns observations, rewards (N,) float32, dones (N,) and infos of the step.

        At the end of an episode the observations are already those of the next.
        """
        observation, reward, _, _, info = self.env.step(self._actions)
        done = "final_obs" in info  # in lockstep the host knows without asking the device
        columns = [reward[:, None], *self._columns(observation)]
        parts: dict[str, Tensor] = {}
        if done:
            parts = {k: v for k, v in info["final_info"].items() if k.startswith("reward/")}
            columns += [*self._columns(info["final_obs"]), *(value[:, None] for value in parts.values())]
        packed = _to_host(columns)
        rewards = packed[:, 0].copy()
        observations, rest = self._unpack(packed[:, 1:])
        self._returns += rewards
        self._length += 1
        if done:
            infos = self._final_infos(rest, list(parts))
            self._begin()
        else:
            infos = [{} for _ in range(self.num_envs)]
        return observations, rewards, np.full(self.num_envs, done), infos

    def close(self) -> None:
        """Closes the vector environment."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Returns a frame (H, W, 3) uint8 of each environment, for videos; needs render_mode='rgb_array'."""
        frames: Any = self.env.render()
        return [None] * self.num_envs if frames is None else list(frames)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Returns an attribute of the vector environment or its outermost wrapper that has it, for each index."""
        return [getattr(self._layer(attr_name), attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets an attribute where `get_attr` finds it, or newly on the outermost wrapper.

        Raises:
            ValueError: if the indices leave environments out, since all are one object.
        """
        chosen = set(self._get_indices(indices))
        if chosen != set(range(self.num_envs)):
            raise ValueError(
                f"indices must name all {self.num_envs} environments, which share their attributes, "
                f"got {sorted(chosen)}"
            )
        setattr(self._layer(attr_name) if self.has_attr(attr_name) else self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args, indices: VecEnvIndices = None, **method_kwargs
    ) -> list[Any]:
        """Calls a method once, on the whole batch, and returns its result for each index."""
        result = getattr(self._layer(method_name), method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Returns for each index whether one of the vector wrappers is of a class.

        A Monitor is always there, for this adapter does its work: SB3 then reads returns and lengths from `episode`.
        """
        wrapped = wrapper_class is Monitor or any(
            isinstance(layer, wrapper_class) for layer in self._layers()
        )
        return [wrapped for _ in self._get_indices(indices)]

    def _layers(self) -> Iterator[VectorEnv]:
        """The wrappers from the outside in, then the environment."""
        layer = self.env
        while layer is not self._inner:
            yield layer
            layer = layer.env  # type: ignore[attr-defined]
        yield layer

    def _layer(self, attr_name: str) -> VectorEnv:
        for layer in self._layers():
            if hasattr(layer, attr_name):
                return layer
        raise AttributeError(f"{self.env} has no attribute {attr_name!r}")

    def _begin(self) -> None:
        self._returns = np.zeros(self.num_envs, np.float32)
        self._length = 0

    def _merged_options(self) -> dict[str, Any]:
        """SB3 holds the options of each environment, the vector environment takes a list for each key."""
        keys = set(self._options[0])
        if any(set(options) != keys for options in self._options):
            raise ValueError("set_options must give every environment the same keys: they are reset together")
        return {key: [options[key] for options in self._options] for key in keys}

    def _columns(self, observation: Observation | Tensor) -> list[Tensor]:
        entries = observation if isinstance(observation, dict) else {FLAT: observation}
        return [entries[name].reshape(self.num_envs, -1) for name in self._entries]

    def _unpack(self, packed: np.ndarray) -> tuple[Any, np.ndarray]:
        """Returns the observation held by the first columns, in arrays of its own, and the other columns."""
        observation, start = {}, 0
        for name, entry in self._entries.items():
            shape = entry.shape or ()
            stop = start + int(np.prod(shape))
            observation[name] = packed[:, start:stop].reshape(-1, *shape).astype(entry.dtype)
            start = stop
        return observation.get(FLAT, observation), packed[:, start:]

    def _final_infos(self, packed: np.ndarray, parts: list[str]) -> list[dict[str, Any]]:
        final, values = self._unpack(packed)
        elapsed = round(time.monotonic() - self._start, 6)
        return [
            {
                "terminal_observation": _row(final, i),
                "episode": {"r": float(self._returns[i]), "l": self._length, "t": elapsed},
                "TimeLimit.truncated": False,
                **{name: float(value) for name, value in zip(parts, values[i], strict=True)},
            }
            for i in range(self.num_envs)
        ]


def _entries(space: spaces.Space) -> dict[str, spaces.Space]:
    """Returns the entries of an observation; a flat one is its only entry."""
    if isinstance(space, spaces.Dict):
        return dict(space.items())
    if isinstance(space, spaces.Box):
        return {FLAT: space}
    raise ValueError(f"the observation space must be a Dict or a Box, got {space}")


def _row(observation: VecEnvObs, i: int) -> Any:
    if isinstance(observation, dict):
        return {name: entry[i] for name, entry in observation.items()}
    return observation[i]  # type: ignore[call-overload]


def _to_host(columns: list[Tensor]) -> np.ndarray:
    """Returns tensors (N, K_i) as one array (N, sum K_i) float32: the only copy from the device."""
    return torch.cat([column.float() for column in columns], dim=1).cpu().numpy()
