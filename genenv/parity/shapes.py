"""Names and shapes of the released checkpoints, compared without their weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from genenv.parity.fixture import Result, failure
from genenv.releases import RELEASES


def check_shapes(folder: Path) -> Iterator[Result]:
    """Builds each listed checkpoint's network on the meta device and loads tensors of the listed names and shapes."""
    for path in sorted(folder.glob("*.json")):
        listing = json.loads(path.read_text())
        with torch.device("meta"):
            if path.stem not in RELEASES:
                yield failure(f"{path.stem} is no release")
                continue
            release = RELEASES[path.stem]
            model = release.build()
            state = {
                name.removeprefix(release.prefix): torch.empty(shape, dtype=getattr(torch, dtype))
                for name, (shape, dtype) in listing["state_dict"].items()
                if name.startswith(release.prefix)
            }
        try:
            model.load_state_dict(state, strict=True, assign=True)
            strict = True
        except RuntimeError:
            strict = False
        yield Result(f"{path.stem}: strict load", 0.0 if strict else float("nan"), 0.0, strict)
        surplus = sum(parameter.numel() for parameter in model.parameters()) - listing["parameters"]
        yield Result(f"{path.stem}: number of parameters", abs(surplus), 0.0, surplus == 0)
