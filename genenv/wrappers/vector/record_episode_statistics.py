"""Sums up the rewards of an episode, batched."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from gymnasium.vector import VectorEnv

from genenv.vector_env import to_numpy
from genenv.wrappers.vector.base import GenVectorWrapper, finished


class RecordEpisodeStatistics(GenVectorWrapper):
    """Puts the return and the length of finished episodes into `info`, as Gymnasium's wrapper of this name does.

    When the episodes end, `info["episode"]` holds their returns `r` (N,) and lengths `l` (N,), of the environment's own
    kind, and `info["_episode"]` says that they are everybody's. There is no time `t`: equal seeds give equal infos.

    Args:
        env: a GenVectorEnv or wrappers around one, with torch or NumPy output, in any autoreset mode.
        buffer_length: episodes that the queues hold.
        stats_key: name of the entry of `info`.

    Attributes:
        return_queue, length_queue: of the latest episodes, as Python numbers, the newest last.
        episode_count: finished episodes.
    """

    def __init__(self, env: VectorEnv, buffer_length: int = 100, stats_key: str = "episode"):
        super().__init__(env)
        self.stats_key, self.episode_count = stats_key, 0
        self.return_queue: deque[float] = deque(maxlen=buffer_length)
        self.length_queue: deque[int] = deque(maxlen=buffer_length)
        self._begin()

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Starts the episodes, and their sums."""
        result = self.env.reset(seed=seed, options=options)
        self._begin()
        return result

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict]:
        """Takes a step; the one that resets under "NextStep" belongs to no episode."""
        observation, reward, terminated, truncated, info = self.env.step(actions)
        ended = finished(info) is not None
        if ended or self._inner.current_step > 0:
            self._returns = self._returns + reward
            self._length += 1
        if ended:
            if self.stats_key in info:
                raise ValueError(f"stats_key must be new in info, got {self.stats_key!r} a second time")
            lengths = torch.full((self.num_envs,), self._length, device=self._inner.device)
            lengths = to_numpy(lengths) if self._inner.output == "numpy" else lengths
            info |= {
                self.stats_key: {"r": self._returns, "l": lengths},
                f"_{self.stats_key}": terminated | truncated,
            }
            self.return_queue.extend(self._returns.tolist())
            self.length_queue.extend([self._length] * self.num_envs)
            self.episode_count += self.num_envs
            self._begin()
        return observation, reward, terminated, truncated, info

    def _begin(self) -> None:
        self._returns: Any = 0.0
        self._length = 0
