"""One page about a run: what came out, how it looks, and the command that made it."""

from __future__ import annotations

import base64
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

import genenv
from genenv.checkpoints import write_text
from genenv.json_text import parse_object, read_object
from genenv.metrics.names import METRICS, Metric

PACKAGES = ("torch", "gymnasium", "numpy")


COLUMNS = METRICS | {"images": Metric("training images", 0, ",.0f")}
"""Key of a summary's row -> its column; other keys follow as they are."""

PICTURES = {
    "samples.png": (
        "Samples",
        "A block of real images, and one for each row of the table; every column is a class. The images of a column "
        "should differ as much as real ones do. The same place of the rows' blocks holds the same seed.",
    ),
    "schedule.png": (
        "Schedule",
        "Every image is given a schedule of its own. The blue line is their mean, the band holds 80 % of the images, "
        "the faint lines are single ones; the dashed line is the hand-crafted schedule.",
    ),
    "curves.png": (
        "Training",
        "Held-out values are measured on fixed seeds and classes, with statistics the reward does not use. A rising "
        "reward beside falling quality or recall is a reward being exploited.",
    ),
}
"""File in the run directory -> its heading and how to read it."""


def write_report(run_dir: str | Path, title: str) -> Path:
    """Writes `report.html`, one self-contained page, from what a run directory holds, and returns its path.

    Reads `metrics.jsonl` and, where they exist, `summary.json`, `config.json`, `samples.png`, `schedule.png` and
    `curves.png`; the page says what is missing. The summary holds "env_id", "verdict" (a sentence), "rows" (one a
    schedule: "name" and its values), "command" and, if it likes, "versions" ({package: version}).

    Raises:
        FileNotFoundError: if the directory has no `metrics.jsonl`.
        ValueError: if one of the files is not readable JSON, or a field is not what it must be.
    """
    run_dir = Path(run_dir)
    records = read_records(run_dir)
    summary, config = _read_object(run_dir / "summary.json"), _read_object(run_dir / "config.json")
    _check_summary(summary, run_dir / "summary.json")
    page = PAGE.substitute(
        title=escape(title),
        facts=_facts(run_dir, summary, records),
        verdict=escape(str(summary.get("verdict", "No verdict yet: the run has not written its summary."))),
        comparison=_comparison(summary.get("rows", [])),
        pictures="\n".join(_picture(run_dir / name, *about) for name, about in PICTURES.items()),
        command=_command(summary),
        config=_config(config),
        versions=_versions(summary),
    )
    write_text(run_dir / "report.html", page)
    return run_dir / "report.html"


def read_records(run_dir: str | Path) -> list[dict[str, float]]:
    """Returns the records of a run's `metrics.jsonl`, one an iteration.

    A last line that a killed run left unfinished is skipped.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line is not a JSON object of finite numbers with a whole "iteration": file, line and field.
    """
    path = Path(run_dir) / "metrics.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {run_dir} is not the directory of a training run")
    *whole, rest = path.read_bytes().split(b"\n")
    if rest.startswith(b"{") and not rest.endswith(b"}"):
        rest = b""
    return [_record(line, f"{path}, line {n}") for n, line in enumerate([*whole, rest], 1) if line.strip()]


def _record(line: bytes, where: str) -> dict[str, float]:
    record = parse_object(line, where)
    if type(record.get("iteration")) is not int:
        raise ValueError(f"{where} has no whole 'iteration', it must number each record")
    for name, value in record.items():
        if not _is_number(value):
            raise ValueError(f"{where}: {name!r} must be a number, got {value!r}")
    return record


def _check_summary(summary: Mapping[str, Any], path: Path) -> None:
    """Raises a ValueError for a field that is not what the page needs."""
    kinds = {"rows": (list, "a list"), "command": (str, "a text"), "versions": (dict, "an object")}
    for name, (kind, said) in kinds.items():
        if not isinstance(summary.get(name, kind()), kind):
            raise ValueError(f"{path}: {name!r} must be {said}, got {str(summary[name])[:60]!r}")
    for n, row in enumerate(summary.get("rows", [])):
        if not isinstance(row, dict) or "name" not in row:
            raise ValueError(
                f"{path}: 'rows' must hold objects with a 'name', got {str(row)[:60]!r} as entry {n}"
            )


def _read_object(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def _facts(run_dir: Path, summary: Mapping[str, Any], records: Sequence[Mapping[str, float]]) -> str:
    written = datetime.fromtimestamp((run_dir / "metrics.jsonl").stat().st_mtime, UTC)
    facts = [str(summary.get("env_id", "")), f"{len(records):,} iterations"]
    if records and "images" in records[-1]:
        facts.append(f"{records[-1]['images']:,.0f} training images")
    facts.append(f"{written.day} {written:%B %Y, %H:%M} UTC")
    return " &middot; ".join(escape(fact) for fact in facts if fact)


def _comparison(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return _absent("There is no comparison: the run has not written its summary.")
    present = {key for row in rows for key in row if key != "name"}
    keys = [key for key in COLUMNS if key in present]
    keys += [key for row in rows for key in row if key in present and key not in keys]
    columns = {key: COLUMNS.get(key, Metric(key.replace("_", " "), 0, ".3g")) for key in dict.fromkeys(keys)}
    arrows = {-1: ' <span class="arrow" title="lower is better">&darr;</span>', 0: ""}
    arrows[1] = arrows[-1].replace("lower", "higher").replace("&darr;", "&uarr;")
    heads = "".join(f'<th scope="col">{escape(c.title)}{arrows[c.better]}</th>' for c in columns.values())
    best = {key: _best([row.get(key) for row in rows], column.better) for key, column in columns.items()}
    lines = []
    for row in rows:
        cells = [_cell(row.get(key), column, best[key]) for key, column in columns.items()]
        lines.append(f'<tr><th scope="row">{escape(str(row.get("name", "")))}</th>{"".join(cells)}</tr>')
    return (
        '<div class="wide"><table><thead><tr><th scope="col">schedule</th>'
        f"{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        '<p class="note">Arrows: which direction is better. Bold: the best of its column.</p>'
    )


def _best(values: Sequence[Any], better: int) -> float | None:
    numbers = [value for value in values if _is_number(value)]
    if not better or len(numbers) < 2:
        return None
    return max(numbers) if better > 0 else min(numbers)


def _cell(value: Any, column: Metric, best: float | None) -> str:
    if not _is_number(value):
        return f"<td>{'&ndash;' if value is None else escape(str(value))}</td>"
    text = format(value, column.format)
    return f"<td><strong>{text}</strong></td>" if value == best else f"<td>{text}</td>"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _picture(path: Path, heading: str, caption: str) -> str:
    if path.is_file():
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        content = (
            f'<figure><img alt="{heading}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    else:
        content = _absent(f"This run has no {path.name}.")
    return f"<section><h2>{heading}</h2>{content}</section>"


def _command(summary: Mapping[str, Any]) -> str:
    command = summary.get("command")
    return f"<pre>{escape(command)}</pre>" if command else _absent("The run has not recorded its command.")


def _config(config: Mapping[str, Any]) -> str:
    if not config:
        return _absent("This run has no config.json.")
    values = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in config.items()}
    rows = "".join(
        f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in values.items()
    )
    return (
        f"<details><summary>Configuration, {len(config)} values</summary>"
        f'<div class="wide"><table class="config"><tbody>{rows}</tbody></table></div></details>'
    )


def _versions(summary: Mapping[str, Any]) -> str:
    packages = {"genenv": genenv.__version__} | {name: version(name) for name in PACKAGES}
    packages |= summary.get("versions", {})  # those the run was made with, where it says so
    listed = ", ".join(f"{name} {number}" for name, number in packages.items())
    return escape(f"{listed}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")


def _absent(sentence: str) -> str:
    return f'<p class="note">{escape(sentence)}</p>'


PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
:root { --ink: #1d2329; --soft: #5d6873; --rule: #dfe3e7; --page: #fff; --raised: #f5f7f8; --accent: #0b6fa4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --soft: #9aa5b0; --rule: #333b43; --page: #15191d; --raised: #1e242a; --accent: #5bb3e0; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 2.5rem 1.5rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 2.6rem 0 0.8rem; font-size: 1.2rem; }
.facts, .note, figcaption { color: var(--soft); font-size: 0.9rem; }
.facts { margin: 0.4rem 0 1.6rem; }
.verdict { margin: 0 0 1.8rem; padding: 0.9rem 1.2rem; background: var(--raised); border-left: 4px solid var(--accent);
  border-radius: 0 6px 6px 0; font-size: 1.1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 0.5rem 0.75rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
thead th { color: var(--soft); font-size: 0.85rem; font-weight: 600; }
tbody th { font-weight: 500; }
th:first-child { padding-left: 0; text-align: left; }
td strong { font-weight: 700; color: var(--accent); }
.arrow { color: var(--accent); }
figure { margin: 0; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figure { padding: 0.75rem; background: #fff; border: 1px solid var(--rule); border-radius: 8px; }
figcaption { max-width: 46rem; padding: 0.6rem 0.4rem 0.2rem; color: #5d6873; }
pre { margin: 0; padding: 0.9rem 1.1rem; background: var(--raised); border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; user-select: all; }
pre, .config td { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 0.86rem; }
details { margin-top: 1.2rem; }
summary { cursor: pointer; color: var(--accent); }
.config { margin-top: 0.6rem; }
.config th, .config td { padding: 0.25rem 0.75rem 0.25rem 0; text-align: left; vertical-align: top; }
.config td { width: 100%; white-space: normal; overflow-wrap: anywhere; }
@media print {
  :root { --ink: #000; --soft: #444; --rule: #bbb; --page: #fff; --raised: #f5f7f8; --accent: #0b6fa4; }
  body { max-width: none; padding: 0; font-size: 11pt; }
  section, tr { break-inside: avoid; }
  h2 { margin-top: 1.4rem; }
  .wide { overflow: visible; }
  th, td { padding: 0.3rem 0.3rem; font-size: 8.5pt; }
  figure img { max-height: 8.8cm; }
  h2 { break-after: avoid; }
  details::details-content { content-visibility: visible; height: auto; }
}
</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="facts">$facts</p>
</header>
<main>
<p class="verdict">$verdict</p>
$comparison
$pictures
<section>
<h2>How it was made</h2>
$command
<p class="note">$versions</p>
$config
</section>
</main>
</body>
</html>
""")
"""The page; `write_report` fills in its fields, already escaped."""
