"""What a scope saves: runs of agents.adascope by host and scope, against those of their host with the full one.

    for scope in full adaptive fixed:13:20 random:7; do for seed in 0 1 2; do
      python -m agents.adascope --host ddpo --scope $scope --seed $seed --out runs/ddpo-$scope-$seed
    done; done
    python -m agents.scope_table --runs runs/ddpo-*

A run is compared with the full one of its host and seed, which has no --name: how many minutes and floating point
operations it took to the reward that the full one ended with, over those of the full one. Rewards are means over a few
iterations. Reward and held-out metrics are told after as many images as the full one has; a run that goes on for longer
shows what it takes to come as far. Since quality and diversity fall while a reward rises, a second table has each run's
held-out metrics less the full one's, at the highest held-out reward that both reach, interpolated linearly between
evaluations (--eval-interval).
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
from genenv.metrics.names import METRICS, SUMMARY
from genenv.ranges import AT_LEAST_1, check
from genenv.viz.report import read_records

FULL = "full"
BASE = "base"
COSTS = ("seconds", "flops")
HELD_OUT = ("reward", *SUMMARY)
TITLES = {
    "share": "decisions",
    "iteration": "s/iteration",
    "training": "training reward",
    "seconds": "time to it",
    "flops": "FLOPs to it",
    "reward": "held-out reward",
    **{name: METRICS[name].title for name in SUMMARY},
}
"""What columns are called."""
COLUMNS = ("share", "iteration", "training", *COSTS, *HELD_OUT)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which runs to compare."""

    runs: tuple[Path, ...]
    """Run directories of `agents.adascope`."""
    window: Annotated[int, AT_LEAST_1] = 5
    """Iterations whose mean reward counts as the reward at the last of them."""
    json: Path | None = None
    """File for the numbers of every run; null for what a run did not reach."""
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

    @property
    def highest(self) -> float:
        """The highest held-out reward."""
        return max(metrics["reward"] for metrics in self.held_out.values())

    def to_reach(self, reward: float, cost: str) -> float:
        """Returns what it cost to reach a reward, infinity where it was not reached."""
        for value, spent in zip(self.reward, self.costs[cost], strict=True):
            if value >= reward:
                return spent
        return math.inf

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
        "training": curve.reward[iterations - 1],
    }
    if full is not None:
        goal = full.reward[-1]
        row |= {cost: curve.to_reach(goal, cost) / full.to_reach(goal, cost) for cost in COSTS}
    told = curve.held_out.get(iterations, {})
    return row | {name: told[name] for name in HELD_OUT if name in told}


def less(curve: Curve, full: Curve) -> dict[str, float]:
    """Returns the held-out metrics of a run less the full one's, at the highest held-out reward that both reach."""
    reward = min(curve.highest, full.highest)
    own, other = curve.at(reward), full.at(reward)
    return {name: own[name] - other[name] for name in SUMMARY if name in own}


def recipe_of(config: Config) -> dict[str, Any]:
    """Returns what runs of one row share: all but the seed, and what may change when a run is continued."""
    return {
        name: v for name, v in dataclasses.asdict(config).items() if name not in (*config.resumable, "seed")
    }


def task_of(config: Config) -> tuple[Any, ...]:
    """Returns what runs share that start from the same generator and are judged on the same images."""
    generator = {name: value for name, value in config.env_kwargs.items() if name != "device"}
    return config.reward, config.seed, config.env_id, json.dumps(generator)


Name = tuple[str, str, str]
"""Of a row: reward, host, and the runs' name or scope."""


def rows_of(curves: Mapping[Path, Curve]) -> Iterator[tuple[Path, Name, dict[str, float], dict[str, float]]]:
    """Yields each run, the name of its row, its numbers, and its metrics less the full one's, where there is one.

    Raises:
        ValueError: if runs of one row have one seed, or differ in more than that.
    """
    full = {
        (curve.config.host, task_of(curve.config)): curve
        for curve in curves.values()
        if curve.config.scope == FULL and curve.config.name is None
    }
    seen: dict[Name, dict[int, Path]] = {}
    for run, curve in curves.items():
        config = curve.config
        name = (config.reward, config.host, config.name or config.scope)
        others = seen.setdefault(name, {})
        for seed, other in others.items():
            ours, theirs = recipe_of(config), recipe_of(curves[other].config)
            found = [field for field in ours if ours[field] != theirs[field]]
            if found or seed == config.seed:
                raise ValueError(
                    f"{other} and {run} would be one row, and differ in {', '.join(found) or 'nothing'}: tell one "
                    f"apart by python -m agents.adascope --resume {run} --name NAME"
                )
        others[config.seed] = run
        reference = full.get((config.host, task_of(config)))
        difference: dict[str, float] = {}
        if reference is not None and reference is not curve and "reward" in curve.base:
            difference = less(curve, reference)
        yield run, name, row_of(curve, reference), difference


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
    evaluated = sorted({curve.config.eval_images for curve in curves.values()})
    if len(evaluated) > 1:
        raise ValueError(f"runs must be evaluated on as many images each (--eval-images), got {evaluated}")
    groups: dict[Name, list[dict[str, float]]] = {}
    differences: dict[Name, list[dict[str, float]]] = {}
    for curve in {task_of(curve.config): curve for curve in curves.values()}.values():
        base = {name: curve.base[name] for name in HELD_OUT if name in curve.base}
        groups.setdefault((curve.config.reward, BASE, curve.config.network or ""), []).append(base)
    every: list[dict[str, Any]] = []
    for run, name, row, difference in rows_of(curves):
        groups.setdefault(name, []).append(row)
        if difference:
            differences.setdefault(name, []).append(difference)
        told = row | {f"less/{metric}": value for metric, value in difference.items()}
        told = {column: value if math.isfinite(value) else None for column, value in told.items()}
        every.append(
            {
                "run": str(run),
                "reward_name": name[0],
                "host": name[1],
                "scope": name[2],
                "seed": curves[run].config.seed,
                **told,
            }
        )
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(every, indent=2, allow_nan=False) + "\n")
    alone = [row["run"] for row in every if "flops" not in row]
    if alone:
        say(f"no full run of the same reward, host, seed and generator to compare with: {', '.join(alone)}")
    unseen = [row["run"] for row in every if not any(name in row for name in HELD_OUT)]
    if unseen:
        say(f"no evaluation after as many images as the full run (--eval-interval): {', '.join(unseen)}")
    for reward in dict.fromkeys(name[0] for name in groups):
        for title, table in (
            (reward, groups),
            (f"{reward}, less the full scope's at equal reward", differences),
        ):
            rows = {name[1:]: rows for name, rows in table.items() if name[0] == reward}
            if rows:
                tell(title, rows)


def tell(title: str, groups: Mapping[tuple[str, str], list[dict[str, float]]]) -> None:
    """Prints a table of {(host, scope): numbers of each run}, with the columns that some run has."""
    columns = [column for column in COLUMNS if any(column in row for rows in groups.values() for row in rows)]
    table = Table("host", "scope", *(TITLES[c] for c in columns), "runs", title=title, box=SIMPLE)
    for name, rows in sorted(groups.items(), key=lambda item: (item[0][0] != BASE, item[0])):
        cells = [cell([row[c] for row in rows]) if all(c in row for row in rows) else "" for c in columns]
        table.add_row(*name, *cells, str(len(rows)))
    print_table(CONSOLE, table)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(tyro.cli(Arguments, description=__doc__))))
