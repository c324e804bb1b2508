"""Schedules that a person sets by hand: the tier's own, the published one, and one tuned on a grid of settings.

python -m baselines.static --env-id AdaGen/MaskGIT-v0 --out static.json
python -m baselines.static --env-id AdaGen/DiT-v0 --only tuned --env-kwargs '{"num_steps": 4}'

The tuned one is how a tier's own came about: every combination of the two or three settings that a person would turn
makes images of the tuning stream, and the one with the lowest FID is kept. `--settings` gives other values.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import gymnasium as gym

from baselines.common import JSON_OBJECT, Bench, Result, Task, main
from genenv.evaluation import LABEL_PLAN, first_seed
from genenv.make import UnknownArgumentError, has_own_schedule
from genenv.progress import Report, progress
from genenv.ranges import AT_LEAST_2
from genenv.registration import defaults
from genenv.rng import Stream
from genenv.rollout import generate, static_actor
from genenv.tiers import PUBLISHED

Settings = dict[str, Any]
"""Keyword arguments of an id that make its hand-crafted schedule."""

MAX_GRID = 1000
"""Combinations of the largest grid."""
EXAMPLE = """'{"guidance_weight": [0, 0.5]}'"""
BATCH_SIZE = 500
"""Images at once of a combination."""

TIME_GRID = {
    "guidance_weight": [0, 0.05, 0.1, 0.25, 0.5, 1, 1.5],
    "grid": [None, "edm", "log_snr", "cosine", "flow_time"],
}
GRIDS: dict[str, dict[str, list[Any]]] = {
    "genenv.envs.maskgit": {
        "guidance_weight": [0, 0.5, 1],
        "token_temperature": [1, 1.1, 1.2, 1.3, 1.4],
        "mask_temperature": [1, 2, 4, 8, 16],
    },
    "genenv.envs.var": {
        "guidance_weight": [0, 0.5, 1, 1.5],
        "token_temperature": [1, 1.1, 1.2, 1.3, 1.4],
        "top_k": [None, 64, 128],
        "top_p": [0.999],
    },
    "genenv.envs.raster_ar": {
        "guidance_weight": [0, 0.1, 0.25, 0.5, 1],
        "token_temperature": [0.95, 1, 1.05, 1.1, 1.2],
        "top_p": [0.96, 0.98, 0.999],
    },
    "genenv.envs.vqgan": {
        "guidance_weight": [0, 0.1, 0.25],
        "token_temperature": [0.9, 1, 1.1, 1.2],
        "top_p": [0.92, 0.96, 0.98, 0.999],
    },
    "genenv.envs.diffusion": TIME_GRID,
    "genenv.envs.flow": TIME_GRID,
}
"""Module of a paradigm's sampler -> the values of the settings that a person would turn."""


@dataclass(frozen=True)
class Config(Task):
    """What is tuned, and with what."""

    only: Literal["hand-crafted", "published", "tuned"] | None = None
    """One of the three rows alone; by default the first, and the second where the tier has a schedule of its own."""
    settings: Annotated[dict[str, Any], JSON_OBJECT] = field(default_factory=dict)
    """The grid, {setting: values}, such as '{"guidance_weight": [0, 0.5], "token_temperature": [1, 1.1]}'; by default
    the paradigm's. A null is the published value."""
    tuning_images: Annotated[int, AT_LEAST_2] = 2000
    """Images of each combination, on seeds that are not held out."""

    def __post_init__(self):
        super().__post_init__()
        for name, values in self.settings.items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"settings must give every setting a list of values, got {name}: {values!r}")


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """Returns every combination of the values of a grid.

    Raises:
        ValueError: if there are none, or too many.
    """
    found = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if not grid or len(found) > MAX_GRID:
        raise ValueError(f"settings must have 1 to {MAX_GRID} combinations, got {len(found) if grid else 0}")
    return found


def usual_grid(env_id: str) -> dict[str, list[Any]]:
    """Returns the grid of a paradigm; ValueError where there is none."""
    module = defaults(env_id)["sampler"].partition(":")[0]
    if module not in GRIDS:
        raise ValueError(f"settings must say what to tune of {env_id}, such as {EXAMPLE}, got none")
    return GRIDS[module]


def best_of(found: Sequence[Settings], score: Callable[[Settings], float], report: Report) -> Settings:
    """Returns the settings with the lowest score; the first of equals."""
    scores = []
    for settings in found:
        scores.append(score(settings))
        report(len(scores), len(found), f"best FID {min(scores):.2f}")
    return found[scores.index(min(scores))]


class Tuning:
    """Scores settings by the FID of their images on the features of the held-out judge.

    Args:
        bench: of the task.
        env_kwargs: under which a setting that is not given has its published value.
        num_images: of each combination.
        seed: repetition whose tuning images they make.
    """

    def __init__(self, bench: Bench, env_kwargs: Mapping[str, Any], num_images: int, seed: int):
        self.bench, self.env_kwargs, self.num_images = bench, dict(env_kwargs), num_images
        self.first = first_seed(seed, num_images)

    def __call__(self, settings: Settings) -> float:
        """Returns the FID of the images.

        Raises:
            ValueError: if the environment does not take the settings.
        """
        kwargs: dict[str, Any] = self.env_kwargs | settings
        kwargs |= {"contexts": LABEL_PLAN, "reward": "none", "autoreset_mode": "Disabled", "output": "torch"}
        number = self.num_images
        try:
            env = gym.make_vec(self.bench.env_id, num_envs=min(BATCH_SIZE, number), **kwargs)
        except UnknownArgumentError as error:
            raise ValueError(f"settings must be those of the environment's schedule: {error}") from None
        images = generate(env, static_actor(env), number, self.first, Stream.TUNING).images
        return self.bench.evaluator.judge.fid(images)


def hand_kwargs(env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns keyword arguments under which the zero action plays the hand-crafted schedule."""
    return dict(env_kwargs) | {"action_mode": "residual", "observe": ["step"], "smoothing": 0.0}


def run(config: Config) -> Iterator[Result]:
    """Yields the results of every repetition.

    Raises:
        ValueError: if the published row alone is asked for where the tier has no schedule of its own, or there is no
            grid to tune on.
    """
    own = hand_kwargs(config.env_kwargs)
    bench = Bench(config, own)
    published = own | ({"schedule": PUBLISHED} if has_own_schedule(bench.env_id, own) else {})
    if config.only == PUBLISHED and published == own:
        raise ValueError(
            f"the hand-crafted schedule of {bench.env_id} is the published one: use --only hand-crafted"
        )
    rows = {} if config.only in (PUBLISHED, "tuned") else {"hand-crafted": bench}
    if published != own and config.only in (None, PUBLISHED):
        rows[PUBLISHED] = Bench(config, published)
    grid = combinations(config.settings or usual_grid(bench.env_id)) if config.only == "tuned" else []
    for seed in config.seeds:
        for method, of in rows.items():
            yield of.result(method, seed, static_actor(of.evaluator.env))
        if not grid:
            continue
        started = time.perf_counter()
        with progress(f"settings, seed {seed}") as report:
            best = best_of(grid, Tuning(bench, published, config.tuning_images, seed), report)
        seconds, spent = time.perf_counter() - started, len(grid) * config.tuning_images
        print(f"tuned, seed {seed}: {json.dumps(best)}", file=sys.stderr)
        of = Bench(config, published | best)
        yield of.result("tuned", seed, static_actor(of.evaluator.env), spent, seconds)


if __name__ == "__main__":
    sys.exit(main(Config, run, __doc__))
