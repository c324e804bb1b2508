"""Reading a folder of reference vectors, and comparing with it."""

from __future__ import annotations

import dataclasses
import functools
import json
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


def close(quantity: str, ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> Result:
    """Compares floats: |ours - theirs| <= tolerance (1 + |theirs|) everywhere."""
    if ours.shape != theirs.shape:
        return Result(
            f"{quantity} {tuple(ours.shape)} != {tuple(theirs.shape)}", float("nan"), tolerance, False
        )
    ours, theirs = ours.double(), theirs.double()
    same = ours == theirs  # infinities of one sign
    error = torch.where(same, 0.0, (ours - theirs).abs())
    near = error.isfinite() & (error <= tolerance * (1 + theirs.abs()))
    ok = bool((same | near).all())
    return Result(quantity, error.max().item() if error.numel() else 0.0, tolerance, ok)


def equal(quantity: str, ours: Tensor, theirs: Tensor) -> Result:
    """Compares whole numbers, which must be the same."""
    if ours.shape != theirs.shape:
        return Result(f"{quantity} {tuple(ours.shape)} != {tuple(theirs.shape)}", float("nan"), 0.0, False)
    error = (ours.long() - theirs.long()).abs().max().item()
    return Result(quantity, float(error), 0.0, error == 0)


class Fixture:
    """A folder of reference vectors.

    Attributes:
        folder: the path.
        config: `config.json`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Returns the tensors of `<name>.safetensors`, such as "io" or "rollout"."""
        return load_file(self.folder / f"{name}.safetensors")

    @functools.cached_property
    def state_dict(self) -> dict[str, Tensor]:
        """The official weights; a matrix stored as two int8 factors is `(A @ B) * scale` in float64."""
        raw = self.tensors("weights")
        state = {name: value for name, value in raw.items() if ".__lr_" not in name}
        for name, entry in self.config.get("lowrank", {}).items():
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
