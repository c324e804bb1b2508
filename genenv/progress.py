"""How far a long command has come: a bar where somebody watches, lines elsewhere."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress

_SHOWN: list[Progress] = []
"""The bars on the terminal, where there are any: a job inside another has a line there, since two would overwrite
each other."""


class Report(Protocol):
    """Takes how far something has come."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Shows `done` of `total`, and a note beside it."""
        ...


def ignore(done: int, total: int, note: str = "") -> None:
    """Shows nothing: the report of a program that has no console."""


def counting(report: Report, total: int) -> Callable[[int], None]:
    """Returns what takes how much more is done, where `report` takes how much is done in all."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(done, total)

    return advance


@contextmanager
def progress(what: str, seconds: float = 10.0) -> Iterator[Report]:
    """Yields what shows on the standard error how far a job has come.

    On a terminal that is a bar, which vanishes with the context, below that of the job around it. In a log file, or
    without rich, it is a line such as "search 0: 12 of 40, FID 1.23", one every so many seconds, so that a short job
    stays silent.

    Args:
        what: the job.
        seconds: between lines.
    """
    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield _lines(what, seconds)
        return
    from rich.markup import escape

    with _bars() as bars:
        job = bars.add_task(escape(what), total=None)

        def report(done: int, total: int, note: str = "") -> None:
            bars.update(job, completed=done, total=total, description=escape(f"{what}  {note}".strip()))

        try:
            yield report
        finally:
            bars.remove_task(job)


@contextmanager
def _bars() -> Iterator[Progress]:
    if _SHOWN:
        yield _SHOWN[0]
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        _SHOWN.append(bars)
        try:
            yield bars
        finally:
            _SHOWN.clear()


def _lines(what: str, seconds: float) -> Report:
    last = time.monotonic()

    def report(done: int, total: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= seconds:
            sys.stderr.write(f"{what}: {done:,} of {total:,}{', ' * bool(note)}{note}\n")
            sys.stderr.flush()
            last = now

    return report
