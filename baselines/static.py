"""The hand-crafted schedule, and the hand-crafted schedule with its guidance tuned on a grid.

python -m baselines.static --env-id AdaGen/MaskGIT-v0 --out static.json
python -m baselines.static --only hand-crafted --seeds 0
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

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
from genenv.evaluation import first_seed
from genenv.progress import Report, progress
from genenv.ranges import ABOVE_ZERO, AT_LEAST_2, NOT_NEGATIVE
from genenv.rng import Stream
from genenv.rollout import schedule_actor
from genenv.schedules import ScheduleParam, handcrafted

GUIDANCE = "guidance_weight"
MAX_GRID = 1000
"""Values of the largest grid; each is two schedules."""


@dataclass(frozen=True)
class Config(Task):
    """What the guidance is tuned with."""

    only: Literal["hand-crafted", "tuned"] | None = None
    """The hand-crafted schedule alone, or the tuned one alone; both where the environment has guidance."""
    step: Annotated[float, ABOVE_ZERO] = 0.25
    """Distance of neighbouring grid values."""
    largest: Annotated[float, NOT_NEGATIVE] = 3.0
    """Last grid value."""
    tuning_images: Annotated[int, AT_LEAST_2] = 1000
    """Images for each schedule of the grid, on seeds that are not held out."""

    def __post_init__(self):
        super().__post_init__()
        if self.largest / self.step >= MAX_GRID:
            raise ValueError(
                f"step must give a grid of at most {MAX_GRID} values up to {self.largest}, got {self.step}"
            )

    @property
    def grid(self) -> list[float]:
        """The values 0, step ... largest."""
        return [self.step * i for i in range(int(self.largest / self.step + 1e-9) + 1)]


def guidance_schedules(params: Sequence[ScheduleParam], grid: Sequence[float]) -> Tensor:
    """Returns schedules (2 G, T, A): the hand-crafted one with its guidance times each value, then with each value.

    MaskGIT's hand-crafted guidance is a ramp towards 1, so its multiples are ramps towards each value.

    Raises:
        ValueError: if the environment has no guidance.
    """
    names = [param.name for param in params]
    if GUIDANCE not in names:
        raise ValueError(f"the environment has no {GUIDANCE} to tune, its parameters are {', '.join(names)}")
    static, column, values = (
        handcrafted(params),
        names.index(GUIDANCE),
        torch.tensor(grid, dtype=torch.float64),
    )
    tables = static.repeat(2, len(grid), 1, 1)  # (2, G, T, A)
    tables[0, :, :, column] = values[:, None] * static[:, column]
    tables[1, :, :, column] = values[:, None]
    return tables.flatten(0, 1)


def best_schedule(tables: Tensor, score: Callable[[Tensor], float], report: Report) -> Tensor:
    """Returns the schedule (T, A) with the lowest score among (P, T, A); the first of equals."""
    scores = []
    for table in tables:
        scores.append(score(table))
        report(len(scores), len(tables), f"best FID {min(scores):.2f}")
    return tables[scores.index(min(scores))]


def run(config: Config) -> Iterator[Result]:
    """Yields the results of every repetition, hand-crafted and tuned.

    Raises:
        ValueError: if the tuned one alone is asked for where there is no guidance.
    """
    bench = Bench(config, static_kwargs(config.env_kwargs))
    static = handcrafted(bench.params)
    has_guidance = GUIDANCE in [param.name for param in bench.params]
    if config.only == "hand-crafted" or (config.only is None and not has_guidance):
        tables, generate = None, None
    else:
        tables = guidance_schedules(bench.params, config.grid)
        generate = StaticSchedules(bench.env_id, config.env_kwargs)
    for seed in config.seeds:
        if config.only != "tuned":
            yield bench.result("hand-crafted", seed, schedule_actor(static), table=static)
        if tables is None or generate is None:
            continue
        started = time.perf_counter()
        first = first_seed(seed, config.tuning_images)

        def fid(table: Tensor, first: int = first, generate: StaticSchedules = generate) -> float:
            images = generate(table[None], config.tuning_images, first, Stream.TUNING)[0]
            return bench.evaluator.judge.fid(images)

        with progress(f"guidance grid, seed {seed}") as report:
            tuned = best_schedule(tables, fid, report)
        yield bench.result(
            "guidance tuned",
            seed,
            schedule_actor(tuned),
            images=len(tables) * config.tuning_images,
            seconds=time.perf_counter() - started,
            table=tuned,
        )


if __name__ == "__main__":
    sys.exit(main(Config, run, __doc__))
