"""What the environment costs beside the generator (`genenv bench`)."""

from __future__ import annotations

import dataclasses
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv

from genenv.rng import BatchRng
from genenv.rollout import unwrapped

BATCH_SIZES = (1, 8, 64, 256)
RATIO_ENVS = 64


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Speed of one environment.

    Attributes:
        env_id: the id.
        device: where the generator ran.
        threads: CPU threads of torch.
        env_steps_per_second: of GenVectorEnv with 64 images, one step being one decision of one image.
        sampler_steps_per_second: of the bare sampler loop on the same weights and schedule.
        ratio: median over interleaved repeats of the loop's time over the environment's; 1 means no overhead.
        images_per_second: {path: {num_envs: finished images a second}}; "native" is GenVectorEnv, "sb3" the
            Stable-Baselines3 adapter where that library is installed.
    """

    env_id: str
    device: str
    threads: int
    env_steps_per_second: float
    sampler_steps_per_second: float
    ratio: float
    images_per_second: dict[str, dict[int, float]]


def measure(env_id: str, device: str = "cpu", repeats: int = 9, **env_kwargs: Any) -> Throughput:
    """Returns the speed of an environment that plays the hand-crafted schedule without a reward.

    Args:
        env_id: a registered id.
        device: "cpu", "cuda", ...
        repeats: timings of each quantity; the median counts.
        env_kwargs: further keyword arguments of the environment.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")

    def make(num_envs: int) -> VectorEnv:
        kwargs: dict[str, Any] = {"reward": "none", "device": device} | env_kwargs
        return gym.make_vec(env_id, num_envs=num_envs, **kwargs)

    env = make(RATIO_ENVS)
    place = unwrapped(env).device
    native, bare = _native_episode(env), _sampler_episode(env)
    for run in (native, bare):  # the first run is slower
        run()
    pairs = [(_seconds(native, place), _seconds(bare, place)) for _ in range(repeats)]
    steps = RATIO_ENVS * unwrapped(env).sampler.horizon

    paths: dict[str, Callable[[VectorEnv], Callable[[], None]]] = {"native": _native_episode}
    if importlib.util.find_spec("stable_baselines3") is not None:
        paths["sb3"] = _sb3_episode
    images: dict[str, dict[int, float]] = {path: {} for path in paths}
    for num_envs in BATCH_SIZES:
        runs = {path: episode(make(num_envs)) for path, episode in paths.items()}
        for run in runs.values():
            run()
        rounds = [{path: _seconds(run, place) for path, run in runs.items()} for _ in range(repeats)]
        for path in paths:
            images[path][num_envs] = num_envs / statistics.median(seconds[path] for seconds in rounds)
    return Throughput(
        env_id=env_id,
        device=str(place),
        threads=torch.get_num_threads(),
        env_steps_per_second=steps / statistics.median(native for native, _ in pairs),
        sampler_steps_per_second=steps / statistics.median(bare for _, bare in pairs),
        ratio=statistics.median(bare / native for native, bare in pairs),
        images_per_second=images,
    )


@torch.no_grad()
def sampler_states(env: VectorEnv, seed: int = 0) -> Iterator[Any]:
    """Yields the T + 1 states of the hand-crafted schedule, from the sampler alone.

    Args:
        env: a GenVectorEnv or wrappers around one; only its sampler, contexts and number of images are used.
        seed: image i has the seed `seed + i`.
    """
    inner = unwrapped(env)
    sampler = inner.sampler
    rng = BatchRng(torch.arange(seed, seed + env.num_envs, device=inner.device))
    static = {p.name: p.static.to(inner.device)[:, None].expand(-1, env.num_envs) for p in sampler.params}
    state = sampler.start(inner.contexts.draw(rng), rng)
    yield state
    for t in range(sampler.horizon):
        state = sampler.advance(state, {name: values[t] for name, values in static.items()}, rng)
        yield state


def _sampler_episode(env: VectorEnv) -> Callable[[], None]:
    def run() -> None:
        *_, last = sampler_states(env)
        with torch.no_grad():
            unwrapped(env).sampler.decode(last)

    return run


def _native_episode(env: VectorEnv) -> Callable[[], None]:
    inner = unwrapped(env)
    actions = torch.zeros(env.num_envs, len(inner.sampler.params), device=inner.device)
    env.reset(seed=0)

    def run() -> None:
        for _ in range(inner.sampler.horizon):  # the last step resets
            env.step(actions)

    return run


def _sb3_episode(env: VectorEnv) -> Callable[[], None]:
    import numpy as np

    from genenv.integrations.sb3 import GenVecEnv

    horizon = unwrapped(env).sampler.horizon
    adapter = GenVecEnv(env)
    actions = np.zeros((env.num_envs, *adapter.action_space.shape), np.float32)  # pyright: ignore
    adapter.reset()

    def run() -> None:
        for _ in range(horizon):
            adapter.step(actions)

    return run


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
