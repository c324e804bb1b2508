"""The hand-crafted schedule, and the hand-crafted schedule with its guidance tuned on a grid.

python -m baselines.static --env-id AdaGen/MaskGIT-v0 --seeds 3 --out static.json
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.common import (
    Bench,
    Report,
    Result,
    StaticSchedules,
    Task,
    main,
    progress_bar,
    static_kwargs,
)
from genenv.evaluation import first_seed
from genenv.rng import Stream
from genenv.rollout import schedule_actor
from genenv.schedules import ScheduleParam, handcrafted

GUIDANCE = "guidance_weight"


@dataclass(frozen=True)
class Config(Task):
    """What the guidance is tuned with."""

    step: float = 0.25
    """Distance of neighbouring grid values."""
    largest: float = 3.0
    """Last grid value."""
    tuning_images: int = 1000
    """Images for each schedule of the grid, on seeds that are not held out."""

    @property
    def grid(self) -> list[float]:
        """The values 0, step ... largest."""
        if not self.step > 0:
            raise ValueError(f"step must be above 0, got {self.step}")
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
        report(len(scores), len(tables), min(scores))
    return tables[scores.index(min(scores))]


def run(config: Config) -> list[Result]:
    """Returns the results of every repetition, hand-crafted and tuned."""
    bench = Bench(config, static_kwargs(config.env_kwargs))
    generate = StaticSchedules(config.env_id, config.env_kwargs)
    static = handcrafted(bench.params)
    tables = guidance_schedules(bench.params, config.grid)
    results = []
    for seed in range(config.seeds):
        results.append(bench.result("hand-crafted", seed, schedule_actor(static), table=static))
        started = time.perf_counter()
        first = first_seed(seed, config.tuning_images)

        def fid(table: Tensor, first: int = first) -> float:
            return bench.evaluator.judge.fid(
                generate(table[None], config.tuning_images, first, Stream.TUNING)[0]
            )

        with progress_bar(f"guidance grid {seed}") as report:
            tuned = best_schedule(tables, fid, report)
        results.append(
            bench.result(
                "guidance tuned",
                seed,
                schedule_actor(tuned),
                images=len(tables) * config.tuning_images,
                seconds=time.perf_counter() - started,
                table=tuned,
            )
        )
    return results


if __name__ == "__main__":
    sys.exit(main(Config, run, __doc__))
