"""A search for one static schedule, by CMA-ES or with a Gaussian process: learnable, not adaptive.

python -m baselines.search --env-id AdaGen/MaskGIT-v0 --out search.json
python -m baselines.search --algorithm gp --objective adversarial --out gp.json
"""

from __future__ import annotations

import itertools
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

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
from genenv.evaluation import Evaluator, first_seed
from genenv.metrics.frechet import frechet_distance, moments
from genenv.progress import Report, progress
from genenv.ranges import ABOVE_ZERO, AT_LEAST_1, AT_LEAST_2
from genenv.rewards import make_reward
from genenv.rewards.features import reward_features
from genenv.rng import Stream, training_seed
from genenv.rollout import schedule_actor

Score = Callable[[Tensor, Tensor], float]
"""What a search minimises, of images (N, C, H, W) of contexts (N,)."""
Values = Callable[[np.ndarray], list[float]]
"""The values of points (P, dimension); lower is better."""
NAMES = {"cma": "CMA-ES", "gp": "GP"}
DISTANCES = ("reward_features", "judge")
"""Objectives that are a FID; every other one is the name of a reward."""
REACH = 2.0
"""A Gaussian process searches as many units around the hand-crafted schedule, in each direction."""


@dataclass(frozen=True)
class Config(Task):
    """What the search spends and sees."""

    algorithm: Literal["cma", "gp"] = "cma"
    """CMA-ES, or optuna's Gaussian process sampler, which takes one schedule after the other."""
    budget: int = 200_000
    """Images of a repetition, the final choice included."""
    images_per_candidate: Annotated[int, AT_LEAST_2] = 192
    """Images that judge a schedule during the search."""
    popsize: Annotated[int, AT_LEAST_2] = 12
    """Schedules of a generation of CMA-ES."""
    sigma: Annotated[float, ABOVE_ZERO] = 0.5
    """First standard deviation of CMA-ES, in unit actions."""
    objective: str = "reward_features"
    """What is minimised: the FID on features of a network that no held-out metric uses ("reward_features") or of the
    held-out judge itself ("judge", the strongest search, over-informed); or what is maximised: a reward by its name,
    such as "adversarial", the frozen discriminator."""
    tuning_images: Annotated[int, AT_LEAST_2] = 1000
    """Images for each finalist of the final choice."""
    batch_size: Annotated[int, AT_LEAST_1] = 512
    """Images at once."""

    def __post_init__(self):
        super().__post_init__()
        if self.rounds < 1:
            least = 2 * self.tuning_images + self.at_once * self.images_per_candidate
            raise ValueError(f"budget must be at least {least} images for one round, got {self.budget}")

    @property
    def at_once(self) -> int:
        """Schedules of a round, which are judged on the same seeds."""
        return self.popsize if self.algorithm == "cma" else 1

    @property
    def rounds(self) -> int:
        """Rounds that the budget pays for, after the two finalists."""
        return (self.budget - 2 * self.tuning_images) // (self.at_once * self.images_per_candidate)


class RewardFeatureDistance:
    """FID of images on the features that rewards may use.

    Args:
        backbone: whose network gives the features.
    """

    def __init__(self, backbone: str):
        self.network, self.mean, covariance = reward_features(backbone, "cpu")
        self.std = covariance.diagonal().sqrt()
        self.real = torch.zeros_like(self.mean), covariance / self.std.outer(self.std)

    def __call__(self, images: Tensor, context: Tensor) -> float:
        """Returns the Frechet distance of images (N, C, H, W) from the real ones, on standardised features."""
        features = (self.network.features(images.cpu()) - self.mean) / self.std
        return frechet_distance(*moments(features), *self.real)


def minimise_by_cma(
    evaluate: Values,
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
        evaluate: called with the points of a generation.
        dimension: of the search space.
        generations: how often.
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
        report(generation + 1, generations, f"lowest {min(values):.2f}")
    best = search.result.xbest
    assert best is not None
    return np.stack([search.result.xfavorite, best])


def minimise_by_gp(
    evaluate: Values, dimension: int, trials: int, generator: np.random.Generator, report: Report
) -> np.ndarray:
    """Returns the finalists (2, dimension) of a search with a Gaussian process: the two best points that were tried.

    The first point is 0, the hand-crafted schedule; nine others are random. Optuna's sampler then maximises the log of
    the expected improvement under a Matern kernel with a length scale for each dimension and noise.

    Args:
        evaluate: called with one point after the other.
        dimension: of the search space, [-`REACH`, `REACH`] in every direction.
        trials: how often.
        generator: where all randomness comes from.
        report: called after every trial with the lowest value so far.
    """
    try:
        import optuna
    except ImportError:
        raise ImportError(
            "the search with a Gaussian process needs optuna: pip install 'genenv[search]'"
        ) from None

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = [f"x{i}" for i in range(dimension)]
    box: dict[str, Any] = {name: optuna.distributions.FloatDistribution(-REACH, REACH) for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.GPSampler(
            seed=int(generator.integers(2**32)), deterministic_objective=False, n_startup_trials=10
        )
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial(dict.fromkeys(names, 0.0))
    tried, values = [], []
    for number in range(trials):
        trial = study.ask(box)
        tried.append(np.array([trial.params[name] for name in names]))
        values += evaluate(tried[-1][None])
        study.tell(trial, values[-1])
        report(number + 1, trials, f"lowest {min(values):.2f}")
    return np.stack([tried[i] for i in np.argsort(values, kind="stable")[[0, min(1, trials - 1)]]])


def search(
    config: Config, seed: int, generate: StaticSchedules, score: Score, report: Report
) -> tuple[Tensor, int]:
    """Returns the schedule (T, A) found, in physical units, and the images it took.

    The T * A numbers of a candidate are residual actions. All candidates of a round get the same seeds and every round
    new ones.
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
        return judged(decode(points), config.images_per_candidate, first, Stream.TRAINING)

    def judged(tables: Tensor, number: int, first: int, stream: Stream) -> list[float]:
        context = generate.contexts(number, first)
        return [score(images, context) for images in generate(tables, number, first, stream)]

    dimension = horizon * len(params)
    if config.algorithm == "cma":
        points = minimise_by_cma(
            evaluate, dimension, config.rounds, config.popsize, config.sigma, generator, report
        )
    else:
        points = minimise_by_gp(evaluate, dimension, config.rounds, generator, report)
    finalists = decode(points)
    distances = judged(finalists, config.tuning_images, first_seed(seed, config.tuning_images), Stream.TUNING)
    spent = config.rounds * config.at_once * config.images_per_candidate + 2 * config.tuning_images
    return finalists[distances.index(min(distances))], spent


def objective(name: str, evaluator: Evaluator) -> Score:
    """Returns what is minimised; see `Config.objective`.

    Raises:
        ValueError: if there is no such reward.
    """
    if name == "judge":
        judge = evaluator.judge
        return lambda images, context: judge.fid(images)
    if name == "reward_features":
        return RewardFeatureDistance(evaluator.backbone)
    reward = make_reward(name, evaluator.backbone, "cpu")
    if reward is None:
        raise ValueError(f"objective must be one of {', '.join(DISTANCES)}, or a reward, got {name!r}")
    return lambda images, context: -reward(images.cpu(), context).mean().item()


def run(config: Config) -> Iterator[Result]:
    """Yields the results of the repetitions."""
    bench = Bench(config, static_kwargs(config.env_kwargs))
    generate = StaticSchedules(bench.env_id, config.env_kwargs, config.batch_size)
    score = objective(config.objective, bench.evaluator)
    for seed in config.seeds:
        started = time.perf_counter()
        with progress(f"search, seed {seed}") as report:
            table, images = search(config, seed, generate, score, report)
        seconds = time.perf_counter() - started
        method = f"searched static ({NAMES[config.algorithm]}, {config.objective})"
        yield bench.result(method, seed, schedule_actor(table), images, seconds, table)


if __name__ == "__main__":
    sys.exit(main(Config, run, __doc__))
