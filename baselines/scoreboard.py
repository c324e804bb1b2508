"""One table of every method: baselines beside trained agents.

python -m baselines.scoreboard runs/static.json runs/search.json runs/adagen-*/summary.json --out scoreboard.md
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from baselines.common import METRICS, Result, interval, read_results
from genenv.checkpoints import write_text


@dataclass(frozen=True)
class Arguments:
    """What to put together."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Results of the baselines, and `summary.json` of the agents' run directories."""
    out: Path | None = None
    """Markdown file for the table; it is printed as well."""


def read(path: Path) -> list[Result]:
    """Returns the results of a baseline's file, or the learned policy of a run's `summary.json`."""
    if path.name != "summary.json":
        return read_results(path)
    summary = json.loads(path.read_text())
    learned = dict(summary["rows"][-1])
    name, images = learned.pop("name"), learned.pop("images")
    agent = summary["command"].split("agents.")[-1].split()[0]
    method = f"{agent}, {name} for each image"
    return [Result(method, summary["env_id"], {}, summary["seed"], learned, images, summary["seconds"], {})]


def markdown(results: Sequence[Result]) -> str:
    """Returns a table with a row for each method, best FID last: mean and 95 % t interval over its repetitions."""
    methods = dict.fromkeys(result.method for result in results)
    grouped = {method: [r for r in results if r.method == method] for method in methods}
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


def main(arguments: Arguments) -> None:
    """Prints the table and writes it."""
    text = markdown([result for path in arguments.files for result in read(path)])
    print(text)
    if arguments.out is not None:
        write_text(arguments.out, text)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
