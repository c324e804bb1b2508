"""Files of a run that survive a crash: the checkpoint and the log of metrics."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch

from genenv.checkpoints import CheckpointError, replacing, write_text
from genenv.viz.report import read_records


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Writes tensors and numbers under a temporary name and renames it, so that the old file lives until then."""
    with replacing(path) as partial:
        torch.save(state, partial)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Returns what `save_checkpoint` wrote, on the CPU; nothing but tensors and plain values is unpickled.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: there is no run to continue or to load")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is damaged ({reason}); train again, or restore a copy of it") from None


class MetricsLog:
    """metrics.jsonl: one line an iteration."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, record: dict[str, float]) -> None:
        """Adds a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def read(self) -> list[dict[str, float]]:
        """Returns all records; a last line that a crash cut short is left out."""
        return read_records(self.path.parent) if self.path.exists() else []

    def cut_after(self, iteration: int) -> None:
        """Drops what a crashed run logged after its last checkpoint; resuming logs it again."""
        kept = [json.dumps(record) + "\n" for record in self.read() if record["iteration"] <= iteration]
        write_text(self.path, "".join(kept))
