"""JSON that anybody may have written: what cannot be read, or not be meant, is told in one line with its place."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

MAX_DEPTH = 100
"""Brackets inside brackets, far more than any file of ours has: what is read is also printed, by recursion."""


class _Refused(ValueError):
    """JSON, but not what a program has written."""


def parse_json(content: str | bytes, where: str) -> Any:
    """Returns what JSON holds; every number in it is finite, every key of an object there once.

    Args:
        content: a text, as bytes in UTF-8.
        where: its place, such as the path of a file.

    Raises:
        ValueError: one line that begins with `where`, if it is anything else.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        found = json.loads(text, object_pairs_hook=_object, parse_int=_number)
        _check(found)
    except _Refused as error:
        raise ValueError(f"{where}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{where} is not readable JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{where} is not readable JSON: its brackets are nested too deeply") from None
    return found


def parse_object(content: str | bytes, where: str) -> dict[str, Any]:
    """Returns the object that JSON holds; see `parse_json`."""
    found = parse_json(content, where)
    if not isinstance(found, dict):
        raise ValueError(f"{where} must hold a JSON object, got {type(found).__name__}")
    return found


def read_object(path: Path) -> dict[str, Any]:
    """Returns the object that a JSON file holds, with its path in what is told; see `parse_json`."""
    return parse_object(path.read_bytes(), str(path))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Refused(f"{twice} is there twice")
    return found


def _number(digits: str) -> float:
    """Returns a whole number; one that a float cannot hold, whose digits Python may not even read, is infinite."""
    return int(digits) if len(digits.lstrip("-")) <= 308 else float(digits)


def _check(content: Any) -> None:
    """Raises an error for the first value that nobody can have meant, with the key that it is under."""
    waiting = [("the value", content, 0)]
    while waiting:  # no recursion: how deep the nesting is, others decide
        name, value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise _Refused(f"{name} is nested more than {MAX_DEPTH} deep")
        if isinstance(value, dict):
            inner = [(key, each) for key, entry in value.items() for each in (key, entry)]
            waiting += [(key, each, depth + 1) for key, each in reversed(inner)]
        elif isinstance(value, list):
            waiting += [(name, entry, depth + 1) for entry in reversed(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            raise _Refused(f"{name} must be finite, got {value}")
        elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            raise _Refused(f"{name} must be a text that UTF-8 can hold, got {value!r}")
