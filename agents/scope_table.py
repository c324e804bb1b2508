"""What a scope saves: runs of agents.adascope by host and scope, against those of their host with the full one.

    for scope in full adaptive fixed:13:20 random:7; do for seed in 0 1 2; do
      python -m agents.adascope --host ddpo --scope $scope --seed $seed --out runs/ddpo-$scope-$seed
    done; done
    python -m agents.scope_table --runs runs/ddpo-*

A run is compared with the full one of its host and seed: how many minutes and floating point operations it took to the
reward that the full one ended with, over those of the full one. Rewards are means over a few iterations. Reward and
held-out metrics are told after as many images as the full one has; a run that goes on for longer shows what it takes
to come as far. Since quality and diversity fall while a reward rises, a second table has each run's held-out metrics
less the full one's, at the highest held-out reward that both reach, interpolated linearly between evaluations
(--eval-interval).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.box import SIMPLE
from rich.table import Table

from agents.adascope import Config
from agents.console import CONSOLE, say
from agents.runs import read_config
from genenv.checkpoints import prepare_file, write_text
from genenv.console import exit_status, print_table
from genenv.metrics.intervals import interval
from genenv.ranges import AT_LEAST_1, check
from genenv.viz.report import read_records

FULL = "full"
BASE = "base"
COSTS = ("seconds", "flops")
METRICS = ("fid", "recall", "coverage", "accuracy")
HELD_OUT = ("reward", *METRICS)
LESS = tuple(f"less/{name}" for name in METRICS)
TITLES = {
    "share": "decisions",
    "iteration": "s/iteration",
    "final": "final reward",
    "seconds": "time to it",
    "flops": "FLOPs to it",
    "reward": "held-out reward",
    "fid": "FID",
}
"""What columns are called, where it is not by their keys."""
COLUMNS = ("share", "iteration", "final", *COSTS, *HELD_OUT)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which runs to compare."""

    runs: tuple[Path, ...]
    """Run directories of `agents.adascope`."""
    window: Annotated[int, AT_LEAST_1] = 5
    """Iterations whose mean reward counts as the reward at the last of them."""
    json: Path | None = None
    """File for the numbers of every run."""
    trust_modules: bool = False
    """Let the runs' configurations name Python modules, whose code then runs."""

    def __post_init__(self):
        check(self)


@dataclasses.dataclass(frozen=True)
class Curve:
    """A finished run.

    Attributes:
        config: its configuration.
        reward: the mean reward at each iteration, over the window that ends there; fewer at the start.
        costs: {"seconds": ..., "flops": ...} up to each iteration.
        share: mean share of decisions in the scope.
        held_out: {iteration: metrics} of every evaluation in turn, from that before training.
    """

    config: Config
    reward: list[float]
    costs: dict[str, list[float]]
    share: float
    held_out: dict[int, dict[str, float]]

    @property
    def base(self) -> dict[str, float]:
        """Held-out metrics before training."""
        return next(iter(self.held_out.values()))

    @property
    def images(self) -> int:
        """Images of an iteration."""
        return self.config.num_groups * self.config.group_size

    @property
    def last(self) -> dict[str, float]:
        """Held-out metrics of the last evaluation."""
        return list(self.held_out.values())[-1]

    def to_reach(self, reward: float, cost: str) -> float:
        """Returns what it cost to reach a reward, infinity where it was not reached."""
        for value, spent in zip(self.reward, self.costs[cost], strict=True):
            if value >= reward:
                return spent
        return math.inf

    @property
    def highest(self) -> float:
        """The highest held-out reward."""
        return max(metrics["reward"] for metrics in self.held_out.values())

    def at(self, reward: float) -> dict[str, float]:
        """Returns held-out metrics where the held-out reward first is so high, between evaluations by a line.

        They are those before training where it starts above; ValueError for more than the highest.
        """
        if self.base["reward"] >= reward:
            return self.base
        for before, after in itertools.pairwise(self.held_out.values()):
            if before["reward"] < reward <= after["reward"]:
                share = (reward - before["reward"]) / (after["reward"] - before["reward"])
                return {name: before[name] + share * (after[name] - before[name]) for name in after}
        raise ValueError(f"reward must be at most the highest of the run, {self.highest}, got {reward}")


def read_curve(run: Path, window: int, trust_modules: bool = False) -> Curve:
    """Returns a finished run.

    Raises:
        ValueError: if it is not finished, or not one of the agent.
    """
    config = read_config(Config, run, trust_modules)
    if not (run / "summary.json").is_file():
        raise ValueError(f"{run} is not finished: continue it with python -m agents.adascope --resume {run}")
    every = read_records(run)
    held_out = {
        int(record["iteration"]): {
            name.removeprefix("held_out/"): v for name, v in record.items() if name.startswith("held_out/")
        }
        for record in every
    }
    records: list[dict[str, Any]] = [record for record in every if "reward" in record]
    rewards = [record["reward"] for record in records]
    seconds = [sum(v for name, v in record.items() if name.startswith("seconds/")) for record in records]
    return Curve(
        config,
        [statistics.fmean(rewards[max(0, i + 1 - window) : i + 1]) for i in range(len(rewards))],
        {"seconds": list(itertools.accumulate(seconds)), "flops": [record["flops"] for record in records]},
        statistics.fmean(record["scope/share"] for record in records),
        {iteration: metrics for iteration, metrics in held_out.items() if metrics or not iteration},
    )


def row_of(curve: Curve, full: Curve | None) -> dict[str, float]:
    """Returns the numbers of a run, {column: value}.

    Args:
        curve: the run.
        full: that of its host and seed with the full scope, None where there is none.
    """
    iterations = len(curve.reward)
    if full is not None:
        iterations = min(iterations, max(1, full.images * len(full.reward) // curve.images))
    row = {
        "share": curve.share,
        "iteration": curve.costs["seconds"][-1] / len(curve.reward),
        "final": curve.reward[iterations - 1],
    }
    if full is not None:
        goal = full.reward[-1]
        row |= {cost: curve.to_reach(goal, cost) / full.to_reach(goal, cost) for cost in COSTS}
        if full is not curve and "reward" in full.base:
            reward = min(curve.highest, full.highest)
            own, other = curve.at(reward), full.at(reward)
            row |= {f"less/{name}": own[name] - other[name] for name in METRICS if name in own}
    told = curve.held_out.get(iterations, {})
    return row | {name: told[name] for name in HELD_OUT if name in told}


def task_of(config: Config) -> tuple[Any, ...]:
    """Returns what runs share that start from the same generator and are judged on the same images."""
    generator = {name: value for name, value in config.env_kwargs.items() if name != "device"}
    return config.reward, config.seed, config.env_id, json.dumps(generator), config.eval_images


def rows_of(curves: Mapping[Path, Curve]) -> Iterator[tuple[Path, tuple[str, str, str], dict[str, float]]]:
    """Yields each run, its (reward, host, name or scope), and its numbers."""
    full = {
        (curve.config.host, task_of(curve.config)): curve
        for curve in curves.values()
        if curve.config.scope == FULL and curve.config.name is None
    }
    seen: dict[tuple[tuple[str, str, str], int], Path] = {}
    for run, curve in curves.items():
        config = curve.config
        name = (config.reward, config.host, config.name or config.scope)
        if (name, config.seed) in seen:
            raise ValueError(
                f"{seen[name, config.seed]} and {run} would be one row with seed {config.seed} twice: tell one apart "
                f"by python -m agents.adascope --resume {run} --name NAME"
            )
        seen[name, config.seed] = run
        yield run, name, row_of(curve, full.get((config.host, task_of(config))))


def cell(values: Sequence[float]) -> str:
    """Returns mean and interval of a column; how often it was reached where it was not always."""
    reached = [value for value in values if math.isfinite(value)]
    if len(reached) < len(values):
        return f"{len(reached)} of {len(values)}" + (f", {interval(reached)}" if reached else "")
    return interval(values)


def main(arguments: Arguments) -> None:
    """Prints a table for every reward, a row for every host and scope: means and 95 % intervals over the seeds."""
    if arguments.json is not None:
        prepare_file(arguments.json)
    curves = {run: read_curve(run, arguments.window, arguments.trust_modules) for run in arguments.runs}
    if not curves:
        raise ValueError("runs must name at least one run directory, got none")
    groups: dict[tuple[str, ...], list[dict[str, float]]] = {}
    for curve in {task_of(curve.config): curve for curve in curves.values()}.values():
        base = {name: curve.base[name] for name in HELD_OUT if name in curve.base}
        groups.setdefault((curve.config.reward, BASE, curve.config.network or ""), []).append(base)
    every = []
    for run, name, row in rows_of(curves):
        groups.setdefault(name, []).append(row)
        every.append({"run": str(run), "reward_name": name[0], "host": name[1], "scope": name[2], **row})
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(every, indent=2, allow_nan=True) + "\n")
    for lacking, why in (
        ("flops", "no full run of the same host, seed and generator: no costs or differences in the rows of"),
        (
            "fid",
            "no FID after as many images as the full run: choose --eval-interval so, or see the summaries, of",
        ),
    ):
        found = [str(row["run"]) for row in every if lacking not in row]
        if found:
            say(f"{why} {', '.join(found)}")
    for reward in dict.fromkeys(name[0] for name in groups):
        rows = {name[1:]: rows for name, rows in groups.items() if name[0] == reward}
        tell(reward, rows, COLUMNS)
        less = {name: each for name, each in rows.items() if all(LESS[0] in row for row in each)}
        if less:
            tell(f"{reward}, less the full scope's at equal reward", less, LESS)


def tell(
    title: str, groups: Mapping[tuple[str, ...], list[dict[str, float]]], columns: Sequence[str]
) -> None:
    """Prints a table of {(host, scope): numbers of each run}, with the columns that some run has."""
    columns = [column for column in columns if any(column in row for rows in groups.values() for row in rows)]
    heads = [TITLES.get(c.removeprefix("less/"), c.removeprefix("less/")) for c in columns]
    table = Table("host", "scope", *heads, "runs", title=title, box=SIMPLE)
    for name, rows in sorted(groups.items(), key=lambda item: (item[0][0] != BASE, item[0])):
        cells = [cell([row[c] for row in rows]) if all(c in row for row in rows) else "" for c in columns]
        table.add_row(*name, *cells, str(len(rows)))
    print_table(CONSOLE, table)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(tyro.cli(Arguments, description=__doc__))))
