"""The way of an agent's configuration, of plain values or of dataclasses of such, to JSON and to the command line."""

from __future__ import annotations

import dataclasses
import json
import shlex
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from genenv.json_text import read_object

C = TypeVar("C")


def as_json(config: Any) -> str:
    """Returns a configuration as the text of a JSON file."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(kind: type[C], path: Path) -> C:
    """Returns the configuration in a JSON file.

    Raises:
        ValueError: one line that names the file and the field, where it is not what `as_json` wrote.
    """
    values = read_object(path)
    try:
        return _parse_fields(kind, values)
    except _Edited as error:
        raise ValueError(f"{path} {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


class _Edited(ValueError):
    """Fields are missing, or unknown."""


def _parse_fields(kind: type[C], values: dict[str, Any]) -> C:
    """Returns the dataclass that an object of JSON is."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for fault, found in (
        ("has no field", [name for name in names if name not in values]),
        ("has an unknown field", [name for name in values if name not in names]),
    ):
        if found:
            raise _Edited(
                f"{fault} {', '.join(found)}: it is of another agent, of another version of it, or was edited"
            )
    return kind(**{name: _parse(hints[name], values[name], name) for name in names})


def _parse(hint: Any, value: Any, name: str) -> Any:
    """Returns a value of JSON as one of the type that a field has."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        if value is None and types.NoneType in inner:
            return None
        return _parse(next(option for option in inner if option is not types.NoneType), value, name)
    if kind is tuple and isinstance(value, list):
        each = [inner[0]] * len(value) if inner[1:] == (...,) else list(inner)
        if len(each) == len(value):
            return tuple(_parse(part, entry, name) for part, entry in zip(each, value, strict=True))
    if hint is float and type(value) is int:
        return float(value)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _parse_fields(hint, value)  # type: ignore[arg-type]
    if type(value) is hint:
        return value
    raise ValueError(f"{name} must be {hint if inner else hint.__name__}, got {value!r}")


def words(config: Any, default: Any = None) -> Iterator[str]:
    """Yields the words of the command line that make a configuration from a default one, by default its class's.

    There the word "None" stands for None, so that no optional text can have it.
    """
    default = type(config)() if default is None else default
    for field in dataclasses.fields(config):
        value, usual = getattr(config, field.name), getattr(default, field.name)
        if value == usual:
            continue
        if dataclasses.is_dataclass(value):
            yield from words(value, usual)
            continue
        flag = "--" + field.name.replace("_", "-")
        if isinstance(value, bool):
            yield flag if value else flag.replace("--", "--no-", 1)
        elif isinstance(value, tuple):
            yield flag
            for entry in value:
                yield from map(str, entry if isinstance(entry, tuple) else (entry,))
        elif str(value).startswith("-"):  # a word of its own would be taken for an option
            yield f"{flag}={value}"
        else:
            yield from (flag, str(value))


def command(agent: str, config: Any, out: Path) -> str:
    """Returns the command line that makes a run from nothing."""
    folder = str(out)
    if folder.startswith("-") or folder == "None":  # would be an option, or no folder
        folder = f"./{folder}"
    return shlex.join(["python", "-m", f"agents.{agent}", *words(config), "--out", folder])
