"""CMA-ES over one static schedule: learnable, not adaptive.

python -m baselines.search --env-id AdaGen/MaskGIT-v0 --out search.json
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from baselines.common import (
    Bench,
    Result,
    StaticSchedules,
    Task,
    main,
    static_kwargs,
)
from genenv.actions import ScheduleActions
from genenv.evaluation import first_seed
from genenv.metrics.frechet import frechet_distance, moments
from genenv.progress import Report, progress
from genenv.ranges import ABOVE_ZERO, AT_LEAST_1, AT_LEAST_2
from genenv.rewards.features import reward_features
from genenv.rng import Stream, training_seed
from genenv.rollout import schedule_actor

Score = Callable[[Tensor], float]
"""The distance of images (N, C, H, W) from the real ones."""


@dataclass(frozen=True)
class Config(Task):
    """What the search spends and sees."""

    budget: int = 200_000
    """Images of a repetition, the final choice included."""
    images_per_candidate: Annotated[int, AT_LEAST_2] = 192
    """Images that judge a schedule during the search."""
    popsize: Annotated[int, AT_LEAST_2] = 12
    """Schedules of a generation."""
    sigma: Annotated[float, ABOVE_ZERO] = 0.5
    """First standard deviation of the search, in unit actions."""
    objective: Literal["reward_features", "judge"] = "reward_features"
    """Whose features give the FID: a network that no held-out metric uses, or the held-out judge itself (the
    strongest search, over-informed)."""
    tuning_images: Annotated[int, AT_LEAST_2] = 1000
    """Images for each finalist of the final choice."""
    batch_size: Annotated[int, AT_LEAST_1] = 512
    """Images at once."""

    def __post_init__(self):
        super().__post_init__()
        if self.generations < 1:
            least = 2 * self.tuning_images + self.popsize * self.images_per_candidate
            raise ValueError(f"budget must be at least {least} images for one generation, got {self.budget}")

    @property
    def generations(self) -> int:
        """Generations that the budget pays for, after the two finalists."""
        return (self.budget - 2 * self.tuning_images) // (self.popsize * self.images_per_candidate)


class RewardFeatureDistance:
    """FID of images on the features that rewards may use.

    Args:
        backbone: whose network gives the features.
    """

    def __init__(self, backbone: str):
        self.network, self.mean, covariance = reward_features(backbone, "cpu")
        self.std = covariance.diagonal().sqrt()
        self.real = torch.zeros_like(self.mean), covariance / self.std.outer(self.std)

    def __call__(self, images: Tensor) -> float:
        """Returns the Frechet distance of images (N, C, H, W) from the real ones, on standardised features."""
        features = (self.network.features(images.cpu()) - self.mean) / self.std
        return frechet_distance(*moments(features), *self.real)


def minimise(
    evaluate: Callable[[np.ndarray], list[float]],
    dimension: int,
    generations: int,
    popsize: int,
    sigma: float,
    generator: np.random.Generator,
    report: Report,
) -> np.ndarray:
    """Returns the finalists (2, dimension) of CMA-ES started at 0: the mean of its distribution, and the best point.

    The best point is the luckiest of all where the objective is noisy; the mean has no such luck, but was never
    evaluated itself.

    Args:
        evaluate: the values of points (popsize, dimension); lower is better.
        dimension: of the search space.
        generations: how often `evaluate` is called.
        popsize: points of a generation.
        sigma: first standard deviation.
        generator: where all randomness comes from.
        report: called after every generation with the lowest value of that generation.
    """
    try:
        import cma
    except ImportError:
        raise ImportError("baselines.search needs cma: pip install 'genenv[search]'") from None

    options = {
        "popsize": popsize,
        "randn": lambda *shape: generator.standard_normal(shape),
        "seed": np.nan,  # leave the global random numbers alone
        "signals_filename": "",
        "verbose": -9,
    }
    search = cma.CMAEvolutionStrategy(np.zeros(dimension), sigma, options)
    for generation in range(generations):
        points = search.ask()
        values = evaluate(np.stack(points))
        search.tell(points, values)
        report(generation + 1, generations, f"FID {min(values):.2f}")
    best = search.result.xbest
    assert best is not None
    return np.stack([search.result.xfavorite, best])


def search(
    config: Config, seed: int, generate: StaticSchedules, score: Score, report: Report
) -> tuple[Tensor, int]:
    """Returns the schedule (T, A) found, in physical units, and the images it took.

    The T * A numbers of a candidate are residual actions. All candidates of a generation get the same seeds and
    every generation new ones.
    """
    params = generate.params
    decoder, horizon = ScheduleActions(params), len(params[0].static)
    low, high = torch.tensor([param.limits for param in params], dtype=torch.float64).T
    generator = np.random.default_rng(seed)
    images = itertools.count(0, config.images_per_candidate)

    def decode(points: np.ndarray) -> Tensor:
        """Physical schedules (P, T, A) of points (P, T * A), inside the physical action space."""
        actions = torch.from_numpy(points).view(len(points), horizon, len(params))
        steps = [torch.stack(list(decoder(actions[:, t], t).values()), dim=1) for t in range(horizon)]
        return torch.stack(steps, dim=1).clamp(low, high)

    def evaluate(points: np.ndarray) -> list[float]:
        first = training_seed(seed, next(images))
        judged = generate(decode(points), config.images_per_candidate, first, Stream.TRAINING)
        return [score(images) for images in judged]

    dimension = horizon * len(params)
    points = minimise(
        evaluate, dimension, config.generations, config.popsize, config.sigma, generator, report
    )
    finalists = decode(points)
    judged = generate(finalists, config.tuning_images, first_seed(seed, config.tuning_images), Stream.TUNING)
    distances = [score(images) for images in judged]
    spent = config.generations * config.popsize * config.images_per_candidate + 2 * config.tuning_images
    return finalists[distances.index(min(distances))], spent


def run(config: Config) -> Iterator[Result]:
    """Yields the results of the repetitions."""
    bench = Bench(config, static_kwargs(config.env_kwargs))
    generate = StaticSchedules(bench.env_id, config.env_kwargs, config.batch_size)
    judge = bench.evaluator.judge
    score = judge.fid if config.objective == "judge" else RewardFeatureDistance(bench.evaluator.backbone)
    for seed in config.seeds:
        started = time.perf_counter()
        with progress(f"search, seed {seed}") as report:
            table, images = search(config, seed, generate, score, report)
        seconds = time.perf_counter() - started
        method = f"searched static ({config.objective})"
        yield bench.result(method, seed, schedule_actor(table), images, seconds, table)


if __name__ == "__main__":
    sys.exit(main(Config, run, __doc__))
