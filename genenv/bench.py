"""What the environment costs beside the generator (`genenv bench`)."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from genenv.actions import ScheduleActions
from genenv.closed_loop import LOOPS, closed_loop
from genenv.make import published_schedule
from genenv.progress import Report, ignore
from genenv.protocols import Context
from genenv.rng import BatchRng
from genenv.rollout import check_not_smoothed
from genenv.vector_env import unwrapped

BATCH_SIZES = (1, 8, 64, 256)
RATIO_ENVS = 64
LOOP_ENVS = 16

Run = Callable[[], Any]
"""Something to be timed."""


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Speed of one environment.

    An episode here is that of GenVectorEnv with zero actions and without a reward, from the first decision to the
    decoded images and the reset that follows. Ratios are medians over interleaved repeats.

    Attributes:
        env_id: the id.
        device: where the generator ran.
        threads: CPU threads of torch.
        env_steps_per_second: of GenVectorEnv with 64 images, one step being one decision of one image.
        sampler_steps_per_second: of the bare sampler loop on the same weights and schedule.
        ratio: the loop's time over the environment's; 1 means no overhead.
        overhead: share of the environment's time at 64 images that its network calls, made again by themselves, do
            not take. They are all that the sampler asks of its networks, the decoding of the images included.
        closed_loop_speedup: time of the generator's plain loop (see `closed_loop`) over the environment's, at 16
            images; above 1 the environment is faster. None for a paradigm that has no such loop.
        separate_loop_speedup: the same over the loop with two guidance calls and a redundant pair at the end.
        images_per_second: {path: {num_envs: finished images a second}}; "native" is GenVectorEnv, "sb3" the
            Stable-Baselines3 adapter where that library is installed.
        peak_memory: {num_envs: bytes}, the most that torch held on a CUDA device during an episode, weights included;
            empty elsewhere.
    """

    env_id: str
    device: str
    threads: int
    env_steps_per_second: float
    sampler_steps_per_second: float
    ratio: float
    overhead: float
    closed_loop_speedup: float | None
    separate_loop_speedup: float | None
    images_per_second: dict[str, dict[int, float]]
    peak_memory: dict[int, int]


def measure(
    env_id: str,
    device: str = "cpu",
    repeats: int = 9,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    report: Report = ignore,
    **env_kwargs: Any,
) -> Throughput:
    """Returns the speed of an environment that plays the hand-crafted schedule without a reward.

    It is the published one, as in the released loops, which call both halves of the guidance, unless `schedule` says
    otherwise.

    Args:
        env_id: a registered id.
        device: "cpu", "cuda", ...
        repeats: timings of each quantity; the median counts.
        batch_sizes: numbers of images at which finished images a second, and memory, are measured.
        report: told how many of the measurements are done.
        env_kwargs: further keyword arguments of the environment, such as `backbone` and `dtype`.

    Raises:
        ValueError: if there is nothing to measure, or physical actions of a schedule are smoothed.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    if min(batch_sizes) < 1:
        raise ValueError(f"batch_sizes must be at least 1, got {min(batch_sizes)}")

    published = published_schedule(env_id)

    def make(num_envs: int) -> VectorEnv:
        kwargs: dict[str, Any] = {"reward": "none", "device": device} | published | env_kwargs
        return gym.make_vec(env_id, num_envs=num_envs, **kwargs)

    env = make(RATIO_ENVS)
    place, horizon = unwrapped(env).device, unwrapped(env).sampler.horizon
    parts = {"native": _native_episode, "sampler": _sampler_episode, "network": _network_replay}
    total = 2 + len(batch_sizes)
    report(0, total, f"{RATIO_ENVS} images at once")
    at_64 = _interleaved(env, parts, repeats)
    report(1, total, f"plain loops, {LOOP_ENVS} images at once")

    env = make(LOOP_ENVS)
    loops = {"native": _native_episode, "loop": _closed_loop_episode, "separate": _separate_loop_episode}
    has_loop = type(unwrapped(env).sampler) in LOOPS
    at_16 = _interleaved(env, loops, repeats) if has_loop else None

    paths: dict[str, Callable[[VectorEnv], Run]] = {"native": _native_episode}
    if importlib.util.find_spec("stable_baselines3") is not None:
        paths["sb3"] = _sb3_episode
    images: dict[str, dict[int, float]] = {path: {} for path in paths}
    memory: dict[int, int] = {}
    for done, num_envs in enumerate(batch_sizes, start=2):
        report(done, total, f"{num_envs} images at once")
        env = make(num_envs)
        for path, seconds in _interleaved(env, paths, repeats).items():
            images[path][num_envs] = num_envs / statistics.median(seconds)
        if place.type == "cuda":
            memory[num_envs] = _peak_memory(_native_episode(env), place)
    return Throughput(
        env_id=env_id,
        device=str(place),
        threads=torch.get_num_threads(),
        env_steps_per_second=RATIO_ENVS * horizon / statistics.median(at_64["native"]),
        sampler_steps_per_second=RATIO_ENVS * horizon / statistics.median(at_64["sampler"]),
        ratio=_median_ratio(at_64["sampler"], at_64["native"]),
        overhead=1 - _median_ratio(at_64["network"], at_64["native"]),
        closed_loop_speedup=None if at_16 is None else _median_ratio(at_16["loop"], at_16["native"]),
        separate_loop_speedup=None if at_16 is None else _median_ratio(at_16["separate"], at_16["native"]),
        images_per_second=images,
        peak_memory=memory,
    )


def sampler_states(env: VectorEnv, seed: int = 0) -> Iterator[Any]:
    """Returns an iterator over the T + 1 states of the hand-crafted schedule, from the sampler alone.

    Args:
        env: a GenVectorEnv or wrappers around one; only its sampler, actions, contexts and number of images are used.
        seed: image i has the seed `seed + i`.
    """
    return _states(env, *_context_and_rng(env, seed))


@torch.no_grad()
def network_calls(env: VectorEnv) -> list[Run]:
    """Returns the calls that the sampler makes of its networks in an episode, in order and ready to be made again.

    A sampler's networks are whatever callables it was given, and their methods.
    """
    sampler, calls = copy.copy(unwrapped(env).sampler), []
    for name, value in vars(sampler).items():
        if callable(value):
            setattr(sampler, name, _Recorder(value, calls))
    *_, last = _states(env, *_context_and_rng(env), sampler)
    sampler.decode(last)
    return calls


class _Recorder:
    """Stands in for a network, or a method of one, and keeps the calls that are made of it."""

    def __init__(self, network: Callable[..., Any], calls: list[Run]):
        self.network, self.calls = network, calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(functools.partial(self.network, *args, **kwargs))
        return self.network(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.network, name)
        return _Recorder(value, self.calls) if callable(value) else value


@torch.no_grad()
def _states(env: VectorEnv, context: Context, rng: BatchRng, sampler: Any = None) -> Iterator[Any]:
    """Yields the states; `sampler` stands in for the environment's own."""
    sampler = unwrapped(env).sampler if sampler is None else sampler
    commands = _default_commands(env)
    state = sampler.start(context, rng)
    yield state
    for command in commands:
        state = sampler.advance(state, command, rng)
        yield state


def _default_actions(env: VectorEnv) -> list[Tensor]:
    """Returns the actions (N, ...) of each decision: the hand-crafted schedule, or zeros where there is none."""
    inner = unwrapped(env)
    steps = range(inner.sampler.horizon)
    if isinstance(inner.actions, ScheduleActions):
        check_not_smoothed(env)
        return [inner.actions.handcrafted(env.num_envs, t) for t in steps]
    return [inner.actions.field.zeros(env.num_envs, inner.device) for _ in steps]


def _default_commands(env: VectorEnv) -> list[Any]:
    return [unwrapped(env).actions(action, t) for t, action in enumerate(_default_actions(env))]


def _context_and_rng(env: VectorEnv, seed: int = 0) -> tuple[Context, BatchRng]:
    inner = unwrapped(env)
    rng = BatchRng(torch.arange(seed, seed + env.num_envs, device=inner.device))
    return inner.contexts.draw(rng), rng


def _sampler_episode(env: VectorEnv) -> Run:
    def run() -> None:
        *_, last = sampler_states(env)
        with torch.no_grad():
            unwrapped(env).sampler.decode(last)

    return run


def _network_replay(env: VectorEnv) -> Run:
    calls = network_calls(env)

    @torch.no_grad()
    def run() -> None:
        for call in calls:
            call()

    return run


def _closed_loop_episode(env: VectorEnv) -> Run:
    return lambda: closed_loop(unwrapped(env).sampler, *_context_and_rng(env))


def _separate_loop_episode(env: VectorEnv) -> Run:
    return lambda: closed_loop(unwrapped(env).sampler, *_context_and_rng(env), separate=True)


def _native_episode(env: VectorEnv) -> Run:
    actions = _default_actions(env)
    env.reset(seed=0)

    def run() -> None:
        for action in actions:  # the last step resets
            env.step(action)

    return run


def _sb3_episode(env: VectorEnv) -> Run:
    from genenv.integrations.sb3 import GenVecEnv

    adapter, dtype = GenVecEnv(env), env.single_action_space.dtype
    actions = [action.cpu().numpy().astype(dtype) for action in _default_actions(env)]
    adapter.reset()

    def run() -> None:
        for action in actions:
            adapter.step(action)

    return run


def _interleaved(
    env: VectorEnv, episodes: dict[str, Callable[[VectorEnv], Run]], repeats: int
) -> dict[str, list[float]]:
    """Returns the seconds {name: [one for each repeat]} of several ways to make an episode, taken in turns."""
    device = unwrapped(env).device
    runs = {name: episode(env) for name, episode in episodes.items()}
    for run in runs.values():  # the first one is slower
        _seconds(run, device)
    rounds = [{name: _seconds(run, device) for name, run in runs.items()} for _ in range(repeats)]
    return {name: [seconds[name] for seconds in rounds] for name in runs}


def _median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def _seconds(run: Run, device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _peak_memory(run: Run, device: torch.device) -> int:
    """Returns the most bytes that torch held on a CUDA device at a time."""
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device)
