"""What the agents tell: text as it is, whatever brackets a path holds, and rows of tables as soon as they are known."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from genenv.checkpoints import prepare_file, write_text
from genenv.metrics.names import in_a_line

CONSOLE = Console()


def say(text: str) -> None:
    """Prints a line as it is."""
    CONSOLE.print(text, markup=False, highlight=False, soft_wrap=True)


def cell(metrics: Mapping[str, float], name: str, form: str = ".3f") -> str:
    """Returns a metric as text, "-" where the judge does not have it (Inception knows no labels)."""
    return f"{metrics[name]:{form}}" if name in metrics else "-"


class Rows:
    """Rows of a table, each told on the standard error, and saved, as soon as it is known.

    Args:
        out: JSON file for {name: metrics} of them; None for none.

    Raises:
        ValueError: if that is a folder.
    """

    def __init__(self, out: Path | None = None):
        self._out, self._rows = out, dict[str, dict[str, float]]()
        if out is not None:
            prepare_file(out)

    def add(self, name: str, metrics: Mapping[str, float]) -> None:
        """Tells and saves a row."""
        self._rows[name] = dict(metrics)
        print(f"{name}: {in_a_line(metrics)}", file=sys.stderr, flush=True)
        if self._out is not None:
            write_text(self._out, json.dumps(self._rows, indent=2) + "\n")
