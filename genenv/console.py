"""How every command ends: tables that can be read, a user's mistake in one line, and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import gymnasium as gym

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

USER_ERRORS = (ValueError, OSError, ImportError, gym.error.Error)
"""What a user's mistake raises: every command tells it in one line, and anything else with its traceback."""


def exit_status(
    work: Callable[[], int | None], program: str | None = None, left: Callable[[], str] = lambda: ""
) -> int:
    """Does a command's work and returns its exit status.

    Args:
        work: what the command does; it may return a status of its own, None for 0.
        program: name that the message starts with, by default that of the running file.
        left: says what an interrupted command leaves behind.

    Returns:
        0, or what `work` returned; 2 for a user's mistake, 130 where the user stopped it, both told in one line on the
        standard error; 141 where nobody reads its output any more, as in `genenv list | head -1`.
    """
    program = Path(sys.argv[0]).stem if program is None else program
    try:
        status = work() or 0
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more
        return 141
    except USER_ERRORS as error:
        sys.stderr.write(f"{program}: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{program}: interrupted{left()}\n")
        return 130
    return status


def print_table(console: Console, table: Table) -> None:
    """Prints a table of many columns."""
    needed = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    console.width = max(console.width, needed)  # a cell that is wrapped cannot be read
    console.print(table)
