"""What the agents' command lines have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import gymnasium as gym
from rich.console import Console
from rich.markup import escape


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turns a user's mistake into one line on the standard error and the exit status 2."""
    try:
        yield
    except (ValueError, OSError, ImportError, gym.error.Error) as error:
        Console(stderr=True, soft_wrap=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False)
        raise SystemExit(2) from None
