"""What the agents print: text as it is, whatever brackets a path holds, and a user's mistake in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.markup import escape

from genenv.cli import USER_ERRORS

CONSOLE = Console()


def say(text: str) -> None:
    """Prints a line as it is."""
    CONSOLE.print(text, markup=False, highlight=False, soft_wrap=True)


def cell(metrics: Mapping[str, float], name: str, form: str = ".3f") -> str:
    """Returns a metric as text, "-" where the judge does not have it (Inception knows no labels)."""
    return f"{metrics[name]:{form}}" if name in metrics else "-"


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turns a user's mistake into one line on the standard error and the exit status 2."""
    try:
        yield
    except USER_ERRORS as error:
        line = " ".join(str(error).split())
        Console(stderr=True, soft_wrap=True).print(f"[red]error:[/] {escape(line)}", highlight=False)
        raise SystemExit(2) from None
