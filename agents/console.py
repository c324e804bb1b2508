"""What the agents print: text as it is, whatever brackets a path holds."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

CONSOLE = Console()


def say(text: str) -> None:
    """Prints a line as it is."""
    CONSOLE.print(text, markup=False, highlight=False, soft_wrap=True)


def cell(metrics: Mapping[str, float], name: str, form: str = ".3f") -> str:
    """Returns a metric as text, "-" where the judge does not have it (Inception knows no labels)."""
    return f"{metrics[name]:{form}}" if name in metrics else "-"
