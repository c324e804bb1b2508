"""Networks of diffusers from the folders of others: safetensors and JSON alone are read, and no code of theirs runs."""

from __future__ import annotations

import inspect
import typing
from pathlib import Path
from typing import Any

import torch

from genenv.json_text import read_object

LARGEST_COUNT = 2**20
"""Of what a configuration counts: pixels of a side, channels, classes."""
COUNT = f"a whole number from 1 to {LARGEST_COUNT:,}"


def is_count(value: Any) -> bool:
    """Returns whether a value of a configuration counts something."""
    return type(value) is int and 1 <= value <= LARGEST_COUNT


def is_number(value: Any) -> bool:
    """Returns whether a value of a configuration is a number, whole or not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_entries(config: dict[str, Any], path: Path, *rules: tuple[str, str, bool]) -> None:
    """Checks entries of a configuration.

    Args:
        config: the configuration.
        path: its file.
        rules: (name, what it must be, whether it is) of entries.

    Raises:
        ValueError: that names the file and the first entry that is not what it must be.
    """
    # It may fetch kernels.
    unquantised = ("quantization_config", "left out", config.get("quantization_config") is None)
    for name, rule, kept in (*rules, unquantised):
        if not kept:
            raise ValueError(f"{path}: {name} must be {rule}, got {config.get(name)!r}")


def check_types(kind: type, path: Path) -> None:
    """Raises a ValueError that names file and entry where a value is not of the type that a class takes."""
    config = read_object(path) if path.is_file() else {}
    for name, parameter in inspect.signature(kind).parameters.items():
        value, default = config.get(name), parameter.default
        if value is None or default is None:
            continue
        several = any(typing.get_origin(each) is tuple for each in typing.get_args(parameter.annotation))
        if not (_is_like(value, default) or (several and _is_like(value, (default,)))):
            raise ValueError(f"{path}: {name} must be such as {default!r}, got {value!r}")


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, list) and all(_is_like(entry, default[0]) for entry in value)
    return isinstance(value, int | float if isinstance(default, int | float) else type(default))


def from_folder(kind: Any, folder: Path, subfolder: str | None, dtype: torch.dtype) -> Any:
    """Returns a network of diffusers from its config.json and its weights in safetensors, in eval mode.

    Raises:
        Exception: what the library raises of a missing or damaged file; its classes check little of what they are
            given. ValueError if weights are missing or not finite.
    """
    with torch.random.fork_rng(devices=[]):  # weights are drawn before they are read
        network, info = kind.from_pretrained(
            str(folder),
            subfolder=subfolder,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    if info["missing_keys"]:
        raise ValueError(f"it lacks the weights {min(info['missing_keys'])!r}")
    if any(not bool(parameter.isfinite().all()) for parameter in network.parameters()):
        raise ValueError("it is damaged: it holds weights that are not finite")
    return network.eval()


def in_one_line(error: Exception) -> str:
    """Returns what a library says is wrong."""
    return " ".join(f"{type(error).__name__} {error}".split())[:200]
