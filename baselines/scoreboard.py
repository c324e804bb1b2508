"""One table of every method: baselines beside trained agents.

python -m baselines.scoreboard runs/static.json runs/search.json runs/adagen-*/summary.json --out scoreboard.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from baselines.common import METRICS, Result, main, read_results
from genenv.checkpoints import write_text
from genenv.metrics.intervals import interval


@dataclass(frozen=True)
class Arguments:
    """What to put together."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Results of the baselines, and `summary.json` of the agents' run directories."""
    out: Path | None = None
    """Markdown file for the table; it is printed as well."""


def read(path: Path) -> list[Result]:
    """Returns the results of a baseline's file, or the learned policy of a run's `summary.json`.

    Raises:
        ValueError: if the file holds neither.
    """
    if path.name != "summary.json":
        return read_results(path)
    summary = json.loads(path.read_text())
    try:
        learned = dict(summary["rows"][-1])
        method, images = f"{summary['agent']}, {learned.pop('name')}", learned.pop("images")
        return [
            Result(method, summary["env_id"], {}, summary["seed"], learned, images, summary["seconds"], {})
        ]
    except KeyError as error:
        raise ValueError(f"{path} must be the summary of a run, but it has no {error}; train again") from None


def collect(arguments: Arguments) -> list[Result]:
    """Returns the results of all files.

    Raises:
        ValueError: if two of them are the same repetition of a method, whose mean over configurations says nothing.
    """
    results, origins = [], {}
    for path in arguments.files:
        for result in read(path):
            key = (result.method, result.env_id, result.seed)
            if key in origins:
                raise ValueError(
                    f"{origins[key]} and {path} both hold {result.method!r} with seed {result.seed} on "
                    f"{result.env_id}; pass the runs of one configuration"
                )
            origins[key] = path
            results.append(result)
    return results


def markdown(results: Sequence[Result]) -> str:
    """Returns a table with a row for each method, best FID last: mean and 95 % t interval over its repetitions.

    Where there are several environments, a method has a row for each.
    """
    several = len({result.env_id for result in results}) > 1
    grouped: dict[str, list[Result]] = {}
    for result in results:
        name = f"{result.method} on {result.env_id}" if several else result.method
        grouped.setdefault(name, []).append(result)
    grouped = dict(sorted(grouped.items(), key=lambda item: -_mean([r.metrics["fid"] for r in item[1]])))
    lines = [
        "| method | " + " | ".join(METRICS) + " | images to find it | seconds | seeds |",
        "|---|" + "---:|" * (len(METRICS) + 3),
    ]
    for method, rows in grouped.items():
        cells = [interval([row.metrics[name] for row in rows]) for name in METRICS]
        images, seconds = (_mean([getattr(row, name) for row in rows]) for name in ("images", "seconds"))
        lines.append(f"| {method} | {' | '.join(cells)} | {images:,.0f} | {seconds:.0f} | {len(rows)} |")
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def finish(results: Sequence[Result], out: Path | None) -> None:
    """Prints the table and writes it where `out` says."""
    text = markdown(results)
    print(text)
    if out is not None:
        write_text(out, text)


if __name__ == "__main__":
    sys.exit(main(Arguments, collect, __doc__, finish))
