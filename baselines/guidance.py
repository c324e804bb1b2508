"""A generator over its guidance weights, and tuned ones without guidance beside it: fidelity against diversity.

python -m baselines.guidance --env-id AdaGen/LlamaGen-v0 --runs runs/grpo-* --pictures pictures
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym

from baselines.common import Bench, FinishedRun, Result, Task, main, read_summary, table_of
from genenv.evaluation import Evaluation
from genenv.export import GENERATOR
from genenv.make import published_schedule
from genenv.metrics.names import METRICS, SUMMARY
from genenv.protocols import Actor
from genenv.registration import defaults
from genenv.rewards import make_reward
from genenv.rewards.mixture import Mixture
from genenv.rng import Stream
from genenv.rollout import Episode, generate, static_actor
from genenv.tiers import tier_of
from genenv.vector_env import unwrapped
from genenv.viz.frontier import MOST_POINTS, save_frontier
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
    """Rewards of single images, whose means over the first 2,000 are told."""
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
        known = [name for name in METRICS if name not in ("clip", "hpsv2", "clip_score", "reward", "w2")]
        for name in self.against:
            if name not in (*known, *self.rewards):
                raise ValueError(f"against must be two of {', '.join((*known, *self.rewards))}, got {name!r}")


def run(config: Config) -> Iterator[Result]:
    """Yields the results of every weight, then of every run; what else a schedule sets is as published."""
    kwargs = defaults(config.env_id) | config.env_kwargs
    config = dataclasses.replace(config, env_kwargs=published_schedule(config.env_id) | config.env_kwargs)
    backbone, module = kwargs["backbone"], importlib.import_module(kwargs["sampler"].partition(":")[0])
    tuned = [read_run(path, backbone, getattr(module, "PARTS", None)) for path in config.runs]
    if config.pictures is not None and len({run.name for run in tuned}) > MOST_POINTS:
        raise ValueError(
            f"runs of at most {MOST_POINTS} names fit in a picture; give those of one method one --name"
        )
    guidance = Guidance(config, backbone)
    for weight in config.weights:
        bench = Bench(config, config.env_kwargs | {"guidance_weight": weight})
        for seed in config.seeds:
            yield guidance.measure(bench, _guided(weight), seed)
    for path, run in zip(config.runs, tuned, strict=True):
        unguided = {"backbone": str(path / GENERATOR), "guidance_weight": 0.0}
        bench = Bench(config, config.env_kwargs | unguided)
        yield guidance.measure(bench, f"{run.name}, tuned", run.seed, run.images, run.seconds)
    if config.pictures is not None:
        draw(config, guidance)


def _guided(weight: float) -> str:
    return f"guidance {weight:g}"


class Guidance:
    """What was found so far.

    Attributes:
        results: all of them.
        episodes: {method: images of the first seed}, where there will be pictures.
    """

    def __init__(self, config: Config, backbone: str):
        self.config, self.backbone = config, backbone
        self.results: list[Result] = []
        self.episodes: dict[str, Episode] = {}
        self.rewards: dict[str, Mixture] = {}

    def measure(self, bench: Bench, method: str, seed: int, images: int = 0, seconds: float = 0.0) -> Result:
        """Returns the result of a generator under its hand-crafted schedule."""
        env = bench.evaluator.env
        actor = static_actor(env)

        def further(evaluation: Evaluation) -> dict[str, float]:
            episode = evaluation.episode
            if self.config.pictures is not None and seed == self.config.seeds[0]:
                self.episodes.setdefault(method, episode)
            found = {
                name: self._reward(name, str(unwrapped(env).device))(episode.images, episode.context)
                .mean()
                .item()
                for name in self.config.rewards
            }
            if evaluation.nfe is not None:
                found["nfe"] = evaluation.nfe
            return found | {"images_per_second": speed(env, actor)}

        self.results.append(bench.result(method, seed, actor, images, seconds, further=further))
        return self.results[-1]

    def _reward(self, name: str, device: str) -> Mixture:
        if name not in self.rewards:
            reward = make_reward(name, self.backbone, device)
            if reward is None:
                raise ValueError(f"rewards must be of single images, got {name!r}")
            self.rewards[name] = reward
        return self.rewards[name]


def speed(env: gym.vector.VectorEnv, actor: Actor) -> float:
    """Returns the images a second of the fastest of `TIMED` batches."""
    seconds = []
    for batch in range(TIMED):
        started = time.perf_counter()
        generate(env, actor, env.num_envs, batch * env.num_envs, Stream.TUNING).images.cpu()
        seconds.append(time.perf_counter() - started)
    return env.num_envs / min(seconds)


def read_run(path: Path, backbone: str, networks: Sequence[str] | None = None) -> FinishedRun:
    """Returns a finished run of agents.grpo.

    Args:
        path: its directory.
        backbone: that it must have tuned.
        networks: one of which it must have tuned; None where that is not known.

    Raises:
        FileNotFoundError: if it is not finished.
        ValueError: if its summary is damaged, or it has tuned no generator, or another one.
    """
    run = read_summary(path)
    if not (path / GENERATOR).is_dir():
        raise ValueError(f"runs must be those of agents.grpo that tuned a generator, got {path}, without one")
    base, network = (run.env_kwargs.get(name) for name in ("backbone", "network"))
    if base != backbone or (networks is not None and network not in networks):
        wanted = f"a network of {', '.join(networks or ['any kind'])} of the backbone {backbone!r}"
        raise ValueError(f"runs must have tuned {wanted}, got {path}, which tuned {network!r} of {base!r}")
    return run


def draw(config: Config, guidance: Guidance) -> None:
    """Writes the pictures: a line through the weights with a point for each name of tuned generators, and samples."""
    assert config.pictures is not None
    values: dict[str, tuple[list[float], list[float]]] = {}
    for result in guidance.results:
        for axis, name in enumerate(config.against):
            values.setdefault(result.method, ([], []))[axis].append(result.metrics[name])
    weights, suffix = sorted(config.weights), f", {config.name}" if config.name else ""
    line = {f"{weight:g}": values.pop(_guided(weight) + suffix) for weight in weights}
    config.pictures.mkdir(parents=True, exist_ok=True)
    save_frontier(config.pictures / "frontier.png", config.against, line, values)
    least, middle = weights[0], weights[len(weights) // 2]
    left_out = [_guided(weight) for weight in weights if weight not in (least, middle)]
    shown = {method: episode for method, episode in guidance.episodes.items() if method not in left_out}
    rows = {method: episode.images for method, episode in shown.items()}
    classes = tier_of(guidance.backbone).class_names
    labels = [classes[int(label)] for label in next(iter(shown.values())).context.tolist()]
    save_samples(config.pictures / "samples.png", rows, labels)


if __name__ == "__main__":
    sys.exit(main(Config, run, __doc__, functools.partial(table_of, names=COLUMNS)))
