"""One table a task of every method: baselines beside trained agents and evaluated policies.

Where a table has the rows "random" and "hand-crafted", a score says how far a method's FID is from the first (0) to the
second (1), and beyond.

python -m baselines.scoreboard runs/static.json runs/search.json runs/adagen-*/summary.json --out scoreboard.md
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import tyro

from baselines.common import Result, parse_results
from genenv.checkpoints import write_text
from genenv.console import exit_status
from genenv.json_text import parse_json
from genenv.make import published_schedule
from genenv.metrics.intervals import interval
from genenv.metrics.names import SUMMARY
from genenv.registration import env_ids
from genenv.schedules import SETTINGS

OF_THE_POLICY = (
    "sampler",
    "num_steps",
    "reward",
    "contexts",
    "observe",
    "action_mode",
    "smoothing",
    "device",
    "output",
    "autoreset_mode",
    "render_mode",
    "compile",
)
"""Keyword arguments that are no part of the task: how a policy sees, acts and is paid, what held-out evaluation sets
itself, and the number of steps, which the decisions say. So are the settings of a hand-crafted schedule."""
ENDS = ("random", "hand-crafted")
"""Methods whose FID is 0 and 1 of a score."""


@dataclass(frozen=True)
class Arguments:
    """What to put together."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Results of the baselines, `summary.json` of the agents' run directories, and what `genenv evaluate --json`
    wrote."""
    out: Path | None = None
    """Markdown file for the tables; they are printed as well."""


@dataclass(frozen=True)
class Task:
    """What can be compared: the same generator, judged alike on as many images."""

    env_id: str
    """Environment id."""
    env_kwargs: str
    """Keyword arguments that matter, as JSON."""
    decisions: int
    """Decisions of an image."""
    num_images: int
    """Held-out images of a repetition."""
    protocol: str
    """How they were judged."""

    def __str__(self) -> str:
        kwargs = json.loads(self.env_kwargs)
        told = [f"{name} {value}" for name, value in kwargs.items()]
        judged = [f"{self.decisions} decisions", f"{self.num_images:,} held-out images"]
        return ", ".join([self.env_id, *told, *judged, f"protocol {self.protocol}"])


@dataclass(frozen=True)
class Row:
    """One repetition of a method."""

    task: Task
    """What it was measured on."""
    method: str
    """What the table calls it."""
    seed: int
    """Repetition."""
    metrics: dict[str, float]
    """Held-out metrics."""
    images: float = math.nan
    """Images generated to find the policy, nan where nobody said."""
    seconds: float = math.nan
    """Wall clock spent on finding it, nan where nobody said."""


def read(path: Path) -> list[Row]:
    """Returns what a file holds: a baseline's results, a run's learned policy, or an evaluated policy.

    Raises:
        ValueError: if it holds none of them, with what is missing.
    """
    content = parse_json(path.read_bytes(), str(path))
    if not isinstance(content, dict):
        kind, found = "baseline", [_of_result(result) for result in parse_results(content, path)]
    else:
        kind, rows = ("run", _of_run) if "rows" in content else ("evaluation", _of_evaluation)
        try:
            found = rows(content)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} must be the record of a finished {kind}, but lacks {error}; make it again"
            ) from None
    for row in found:
        _check(row, f"{path} must be the record of a finished {kind}")
    return found


def _check(row: Row, rule: str) -> None:
    """Raises a ValueError for the first value that is not what a table is made of."""
    task, metrics = row.task, row.metrics
    if not isinstance(metrics, dict) or "fid" not in metrics:
        raise ValueError(f"{rule}: its metrics must be an object with fid, got {str(metrics)[:60]}")
    texts = {"protocol": task.protocol, "name": row.method}
    whole = {"decisions": task.decisions, "num_images": task.num_images, "seed": row.seed}
    numbers = {"images": row.images, "seconds": row.seconds} | metrics
    for values, kinds in ((texts, str), (whole, int), (numbers, int | float)):
        for name, value in values.items():
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ValueError(f"{rule}, got {name} {str(value)[:60]}")


def _of_result(result: Result) -> Row:
    task = _task(result.env_id, result.env_kwargs, result.decisions, result.num_images, result.protocol)
    return Row(task, result.method, result.seed, result.metrics, result.images, result.seconds)


def _of_run(summary: Mapping[str, Any]) -> list[Row]:
    """The learned policy of a run's `summary.json`."""
    learned, judged = dict(summary["rows"][-1]), summary["evaluations"]["learned"]
    name, images = learned.pop("name"), learned.pop("images")
    return [
        Row(
            _task(
                summary["env_id"],
                summary["env_kwargs"],
                summary["decisions"],
                judged["num_images"],
                judged["protocol"],
            ),
            summary.get("name") or f"{summary['agent']}, {name}",
            summary["seed"],
            learned,
            images,
            summary["seconds"],
        )
    ]


def _of_evaluation(record: Mapping[str, Any]) -> list[Row]:
    """The repetitions of what `genenv evaluate --json` wrote."""
    task = _task(
        record["env_id"], record["env_kwargs"], record["decisions"], record["num_images"], record["protocol"]
    )
    return [Row(task, record["name"], seed, metrics) for seed, metrics in enumerate(record["runs"])]


def _task(env_id: str, env_kwargs: Mapping[str, Any], decisions: int, num_images: int, protocol: str) -> Task:
    name = str(env_id).rpartition(":")[2]  # an agent's run keeps the module that registers the id
    spec = gym.registry.get(name)
    kwargs = ({} if spec is None else spec.kwargs) | dict(env_kwargs)
    scheduled = spec is not None and name in env_ids() and bool(published_schedule(name))
    aside = OF_THE_POLICY + (SETTINGS if scheduled else ())
    matter = {key: value for key, value in kwargs.items() if key not in aside}
    return Task(name, json.dumps(matter, sort_keys=True), decisions, num_images, protocol)


def collect(files: Sequence[Path]) -> list[Row]:
    """Returns the rows of all files; what several of them measured alike, such as the hand-crafted schedule, once.

    Raises:
        ValueError: if two of them are the same repetition of a method with other numbers, whose mean over
            configurations says nothing.
    """
    rows: list[Row] = []
    origins: dict[tuple[Task, str, int], Path] = {}
    measured: dict[tuple[Task, str, int], dict[str, float]] = {}
    for path in files:
        for row in read(path):
            key = (row.task, row.method, row.seed)
            if key in origins:
                if _alike(measured[key], row.metrics):
                    continue
                raise ValueError(
                    f"{origins[key]} and {path} both hold {row.method!r} with seed {row.seed} on {row.task}; "
                    "make one of them again with another --name"
                )
            origins[key], measured[key] = path, row.metrics
            rows.append(row)
    return rows


def _alike(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return all(math.isclose(one[name], other[name], rel_tol=1e-6) for name in one.keys() & other.keys())


def markdown(rows: Sequence[Row]) -> str:
    """Returns a table for each task: a row for each method, best FID last, mean and 95 % t interval over its seeds."""
    tasks = dict.fromkeys(row.task for row in rows)
    return "\n".join(f"{task}\n\n{_table([row for row in rows if row.task == task])}" for task in tasks)


def _table(rows: Sequence[Row]) -> str:
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row.method, []).append(row)
    metrics = [name for name in SUMMARY if any(name in row.metrics for row in rows)]
    score = _score(grouped)
    heads = [*metrics, *(["score"] if score else []), "images to find it", "seconds", "seeds"]
    lines = [f"| method | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for method, group in sorted(
        grouped.items(), key=lambda item: -_mean([row.metrics["fid"] for row in item[1]])
    ):
        cells = [
            interval([row.metrics[name] for row in group]) if name in group[0].metrics else "-"
            for name in metrics
        ]
        if score:
            cells.append(f"{score(group):.2f}")
        images, seconds = (_mean([getattr(row, name) for row in group]) for name in ("images", "seconds"))
        spent = ["-" if math.isnan(value) else f"{value:,.0f}" for value in (images, seconds)]
        name = method.replace("|", r"\|")  # a bar ends a cell
        lines.append(f"| {name} | {' | '.join([*cells, *spent])} | {len(group)} |")
    return "\n".join(lines) + "\n"


def _score(grouped: Mapping[str, Sequence[Row]]) -> Callable[[Sequence[Row]], float] | None:
    """Returns what gives the score of a method's rows; None where there is nothing to measure it by."""
    if not set(ENDS) <= grouped.keys():
        return None
    worst, usual = (_mean([row.metrics["fid"] for row in grouped[name]]) for name in ENDS)
    if worst == usual:
        return None
    return lambda rows: (worst - _mean([row.metrics["fid"] for row in rows])) / (worst - usual)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> int:
    """Prints the tables, writes them where `out` says, and returns the exit status."""

    def work() -> None:
        arguments = tyro.cli(Arguments, description=__doc__)
        text = markdown(collect(arguments.files))
        print(text)
        if arguments.out is not None:
            write_text(arguments.out, text)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
