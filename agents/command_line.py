"""What the agents' command lines have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.markup import escape

from genenv.cli import USER_ERRORS


def cell(metrics: Mapping[str, float], name: str, form: str = ".3f") -> str:
    """Returns a metric as text, "-" where the judge does not have it (Inception knows no labels)."""
    return f"{metrics[name]:{form}}" if name in metrics else "-"


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turns a user's mistake into one line on the standard error and the exit status 2."""
    try:
        yield
    except USER_ERRORS as error:
        Console(stderr=True, soft_wrap=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False)
        raise SystemExit(2) from None
