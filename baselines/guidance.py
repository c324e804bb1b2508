"""A generator over its guidance weights, and tuned ones without guidance beside it: fidelity against diversity.

python -m baselines.guidance --env-id AdaGen/LlamaGen-v0 --runs runs/grpo-* --pictures pictures
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from baselines.common import Bench, Result, Task, main, table_of
from genenv.evaluation import Evaluation
from genenv.export import GENERATOR
from genenv.json_text import read_object
from genenv.metrics.names import METRICS, SUMMARY
from genenv.protocols import Actor
from genenv.rewards import make_reward
from genenv.rng import Stream
from genenv.rollout import Episode, generate, static_actor
from genenv.tiers import tier_of
from genenv.vector_env import unwrapped
from genenv.viz.frontier import save_frontier
from genenv.viz.plots import save_samples

COLUMNS = (*SUMMARY[:1], "kid", *SUMMARY[1:], "clip", "hpsv2", "nfe", "images_per_second")
TIMED = 3
"""Batches, of which the fastest tells the speed: what else the machine does slows the others."""


@dataclass(frozen=True)
class Config(Task):
    """What is compared."""

    env_id: str = "AdaGen/LlamaGen-v0"
    """Id with a guidance weight. Each weight is that of the whole schedule."""
    weights: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
    """Guidance weights; 0 is none."""
    runs: tuple[Path, ...] = ()
    """Run directories of agents.grpo that tuned a generator, each measured without guidance on the images of its own
    seed."""
    rewards: tuple[str, ...] = ("clip", "hpsv2")
    """Rewards of single images, whose means are told."""
    against: tuple[str, str] = ("accuracy", "fid")
    """Metrics on the axes of the picture."""
    pictures: Path | None = None
    """Folder for frontier.png, and samples.png: images of the first seed under the least and the middle weight, and
    tuned."""

    def __post_init__(self):
        super().__post_init__()
        finite = all(0 <= weight < math.inf for weight in self.weights)
        if not self.weights or len(set(self.weights)) < len(self.weights) or not finite:
            raise ValueError(f"weights must be different finite numbers from 0 on, got {self.weights}")
        for name in self.against:
            if name not in METRICS:
                raise ValueError(f"against must be two of {', '.join(METRICS)}, got {name!r}")


def run(config: Config) -> Iterator[Result]:
    """Yields the results of every weight, then of every run."""
    found: list[Result] = []
    episodes: dict[tuple[str, int], Episode] = {}
    for weight in config.weights:
        bench = _bench(config, {"guidance_weight": weight})
        for seed in config.seeds:
            found.append(_result(bench, _guided(weight), seed, episodes))
            yield found[-1]
    for path in config.runs:
        seed, method, images, seconds = _summary(path)
        bench = _bench(config, {"backbone": str(path / GENERATOR), "guidance_weight": 0.0})
        found.append(_result(bench, method, seed, episodes, images, seconds))
        yield found[-1]
    if config.pictures is not None:
        draw(config, found, episodes)


def _bench(config: Config, kwargs: dict[str, Any]) -> Bench:
    return Bench(config, config.env_kwargs | kwargs)


def _guided(weight: float) -> str:
    return f"guidance {weight:g}"


def _result(
    bench: Bench,
    method: str,
    seed: int,
    episodes: dict[tuple[str, int], Episode],
    images: int = 0,
    seconds: float = 0.0,
) -> Result:
    """Returns the result of a generator under its hand-crafted schedule, and keeps the episode."""
    config, env = bench.task, bench.evaluator.env
    assert isinstance(config, Config)
    actor = static_actor(env)

    def further(evaluation: Evaluation) -> dict[str, float]:
        episodes[method, seed] = episode = evaluation.episode
        found = {}
        for name in config.rewards:
            reward = make_reward(name, bench.evaluator.backbone, str(unwrapped(env).device))
            if reward is None:
                raise ValueError(f"rewards must be of single images, got {name!r}")
            found[name] = reward(episode.images, episode.context).mean().item()
        if evaluation.nfe is not None:
            found["nfe"] = evaluation.nfe
        return found | {"images_per_second": speed(env, actor)}

    return bench.result(method, seed, actor, images, seconds, further=further)


def speed(env: gym.vector.VectorEnv, actor: Actor) -> float:
    """Returns the images a second of the fastest of `TIMED` batches."""
    seconds = []
    for batch in range(TIMED):
        started = time.perf_counter()
        generate(env, actor, env.num_envs, batch * env.num_envs, Stream.TUNING).images.cpu()
        seconds.append(time.perf_counter() - started)
    return env.num_envs / min(seconds)


def _summary(path: Path) -> tuple[int, str, int, float]:
    """Returns seed, name, images and seconds of a finished run.

    Raises:
        FileNotFoundError: if it is not finished.
        ValueError: if its summary is damaged, or it has tuned no generator.
    """
    summary = read_object(path / "summary.json")
    if not (path / GENERATOR).is_dir():
        raise ValueError(f"runs must be those of agents.grpo that tuned a generator, got {path}, without one")
    try:
        name = f"{summary['name'] or summary['agent']}, tuned"
        return summary["seed"], name, summary["rows"][-1]["images"], summary["seconds"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path}/summary.json must be that of a finished run, but lacks {error}") from None


def draw(config: Config, results: Sequence[Result], episodes: Mapping[tuple[str, int], Episode]) -> None:
    """Writes the pictures: a line through the weights with a point for each name of tuned generators, and samples."""
    assert config.pictures is not None
    values: dict[str, tuple[list[float], list[float]]] = {}
    for result in results:
        for axis, name in enumerate(config.against):
            values.setdefault(result.method, ([], []))[axis].append(result.metrics[name])
    weights, suffix = sorted(config.weights), f", {config.name}" if config.name else ""
    line = {f"{weight:g}": values.pop(_guided(weight) + suffix) for weight in weights}
    config.pictures.mkdir(parents=True, exist_ok=True)
    save_frontier(config.pictures / "frontier.png", config.against, line, values)
    first = {method: episode for (method, seed), episode in episodes.items() if seed == config.seeds[0]}
    shown = {_guided(weights[0]), _guided(weights[len(weights) // 2])}
    shown |= {method for method in first if not method.startswith("guidance ")}
    rows = {method: episode.images for method, episode in first.items() if method in shown}
    classes = tier_of(results[0].env_kwargs["backbone"]).class_names
    labels = [classes[int(label)] for label in next(iter(first.values())).context.tolist()]
    save_samples(config.pictures / "samples.png", rows, labels)


if __name__ == "__main__":
    sys.exit(main(Config, run, __doc__, functools.partial(table_of, names=COLUMNS)))
