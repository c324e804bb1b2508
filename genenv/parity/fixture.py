"""Reading a folder of reference vectors, and comparing with it."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class Result:
    """One compared quantity. `tolerance` is 0 for whole numbers, else both the absolute and the relative one."""

    quantity: str
    max_abs_err: float
    tolerance: float
    ok: bool


def failure(quantity: str) -> Result:
    """Returns the result of what cannot be compared."""
    return Result(quantity, float("nan"), 0.0, False)


def close(
    quantity: str,
    ours: Tensor,
    theirs: Tensor,
    tolerance: float = 1e-4,
    rounding: Tensor | float = 0.0,
) -> Result:
    """Compares floats: |ours - theirs| <= tolerance (1 + |theirs|) + rounding everywhere.

    Rounding is how far the reference itself may be from exact arithmetic.
    """
    if ours.shape != theirs.shape:
        return Result(
            f"{quantity} {tuple(ours.shape)} != {tuple(theirs.shape)}", float("nan"), tolerance, False
        )
    ours, theirs = ours.double(), theirs.double()
    same = ours == theirs  # infinities of one sign
    error = torch.where(same, 0.0, (ours - theirs).abs())
    near = error.isfinite() & (error <= tolerance * (1 + theirs.abs()) + rounding)
    ok = bool((same | near).all())
    return Result(quantity, error.max().item() if error.numel() else 0.0, tolerance, ok)


def equal(quantity: str, ours: Tensor, theirs: Tensor) -> Result:
    """Compares whole numbers, which must be the same."""
    if ours.shape != theirs.shape:
        return Result(f"{quantity} {tuple(ours.shape)} != {tuple(theirs.shape)}", float("nan"), 0.0, False)
    error = (ours.long() - theirs.long()).abs().max().item()
    return Result(quantity, float(error), 0.0, error == 0)


class Record(Mapping[str, Any]):
    """Named values that remember which of them were read.

    A value that is an object, or a list of objects, is a Record in turn.
    """

    def __init__(self, values: Mapping[str, Any]):
        self._values = {name: _recorded(value) for name, value in values.items()}
        self._prefix, self._read = "", set[str]()

    def __getitem__(self, name: str) -> Any:
        value = self._values[self._prefix + name]
        self._read.add(self._prefix + name)
        return value

    def __contains__(self, name: object) -> bool:
        return f"{self._prefix}{name}" in self._values

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._prefix) for name in self._values if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def under(self, prefix: str) -> Record:
        """Returns the values whose names begin with a prefix, by the rest of the name."""
        view = copy.copy(self)  # what is read in the view is read here
        view._prefix = self._prefix + prefix
        return view

    def unread(self) -> Iterator[str]:
        """Yields the names that nobody read; a dot leads into an object."""
        for name, value in self._values.items():
            if name not in self._read and not (isinstance(value, Record) and not value):
                yield name
            elif isinstance(value, Record):
                yield from (f"{name}.{inner}" for inner in value.unread())
            elif isinstance(value, list):
                for i, item in enumerate(value):
                    if isinstance(item, Record):
                        yield from (f"{name}.{i}.{inner}" for inner in item.unread())


def _recorded(value: Any) -> Any:
    if isinstance(value, dict):
        return Record(value)
    return [_recorded(item) for item in value] if isinstance(value, list) else value


UNUSED = ("seed", "margins", "dtype", "state_dict", "*token_gumbel*")
"""Settings and tensors of every family that nothing depends on; of a draw's two recordings the uniform one is used."""


class Fixture:
    """A folder of reference vectors.

    Everything in it must be used: a check reads it, compares it with what genenv has built in (`expect`), or says that
    nothing depends on it (`ignore`). See `unused`.

    Attributes:
        folder: the path.
        config: `config.json`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = Record(json.loads((folder / "config.json").read_text()))
        self._files: dict[str, Record] = {}
        self._ignored: list[str] = [*UNUSED]

    def tensors(self, name: str) -> Record:
        """Returns the tensors of `<name>.safetensors`, such as "io" or "rollout"."""
        if name not in self._files:
            self._files[name] = Record(load_file(self.folder / f"{name}.safetensors"))
        return self._files[name]

    def expect(self, settings: Mapping[str, Any]) -> Iterator[Result]:
        """Yields a failure for each setting of `config.json`, named by its dotted path, that has another value."""
        for path, expected in settings.items():
            *parents, name = path.split(".")
            record = self.config
            for parent in parents:
                record = record[parent] if parent in record else Record({})
            if name in record and record[name] != expected:
                yield failure(f"setting {path} is {record[name]!r}, genenv has {expected!r}")

    def ignore(self, *patterns: str) -> None:
        """Names settings and tensors that nothing depends on; `*` stands for anything."""
        self._ignored += patterns

    def unused(self) -> Iterator[Result]:
        """Yields a failure for every setting, tensor and file that no check used, or that there is none."""
        found = [f"setting {path}" for path in self._left(self.config)]
        for name, record in self._files.items():
            found += [f"tensor {path} of {name}.safetensors" for path in self._left(record)]
        files = {path.stem for path in self.folder.glob("*.safetensors")}
        found += [f"file {name}.safetensors" for name in sorted(files - self._files.keys())]
        yield from (failure(f"{what} is not known") for what in found)
        if not found:
            yield Result("unknown settings and tensors", 0.0, 0.0, True)

    def _left(self, record: Record) -> Iterator[str]:
        for path in record.unread():
            if not any(fnmatch.fnmatchcase(path, pattern) for pattern in self._ignored):
                yield path

    @functools.cached_property
    def state_dict(self) -> dict[str, Tensor]:
        """The official weights; a matrix stored as two int8 factors is `(A @ B) * scale` in float64."""
        raw = self.tensors("weights")
        state = {name: value for name, value in raw.items() if ".__lr_" not in name}
        for name, entry in self.config.get("lowrank", Record({})).items():
            product = raw[f"{name}.__lr_a"].double() @ raw[f"{name}.__lr_b"].double()
            state[name] = (product * entry["scale"]).float().reshape(entry["shape"])
        return state

    def load(self, model: Model) -> Model:
        """Returns the network with the official weights, frozen and in eval mode."""
        model.load_state_dict(self.state_dict)
        return model.eval().requires_grad_(False)

    def sibling(self, relative: str) -> Fixture:
        """Returns the folder that a config names relative to this one, such as "../var_vqvae"."""
        return Fixture((self.folder / relative).resolve())
