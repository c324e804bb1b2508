"""Where the weights of a backbone lie, and loading them safely."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genenv.models.digits_classifier import DigitsClassifier
from genenv.models.digits_discriminator import DigitsDiscriminator
from genenv.models.digits_vq import DigitsVQ
from genenv.models.maskgit import maskgit_digits

DIGITS_PARTS: dict[str, Callable[[], nn.Module]] = {
    "vq": DigitsVQ,
    "maskgit": maskgit_digits,
    "discriminator": DigitsDiscriminator,
    "judge": lambda: DigitsClassifier(width=32),
    "reward_features": lambda: DigitsClassifier(width=24),
}
"""Networks of the digits tier, each in `<part>.safetensors`."""

BACKBONES = {"digits": DIGITS_PARTS}
LICENCES = {"digits": "MIT; trained on the UCI handwritten digits, CC BY 4.0"}
"""Backbone -> the licence of its weights."""

MANIFEST = "manifest.json"


class CheckpointError(ValueError):
    """A weight file is missing, damaged or not the expected one."""


def backbone_folder(backbone: str) -> Path:
    """Returns the folder of a backbone: a shipped one by name, or a folder that `genenv zoo build` wrote."""
    if backbone in BACKBONES:
        return Path(str(files("genenv") / "assets" / backbone))
    if os.sep in backbone or Path(backbone).is_dir():
        folder = Path(backbone).expanduser()
        if not (folder / MANIFEST).is_file():
            raise CheckpointError(
                f"backbone {backbone!r} is not a folder with a {MANIFEST}; make one with "
                f"`genenv zoo build digits --out {backbone}`"
            )
        return folder
    raise ValueError(
        f"backbone must be one of {', '.join(map(repr, BACKBONES))} or a folder of the zoo, got {backbone!r}"
    )


def load_generator(part: str, backbone: str) -> Any:
    """Returns a network of a backbone in eval mode, without gradients.

    Args:
        part: the network's name, such as "maskgit", "vq" or "judge".
        backbone: a backbone's name, or a folder of the zoo.
    """
    folder = backbone_folder(backbone)
    parts = BACKBONES.get(backbone, DIGITS_PARTS)
    if part not in parts:
        raise ValueError(f"backbone {backbone!r} has no {part!r}; it has {', '.join(parts)}")
    model = parts[part]()
    load_state(model, load_tensors(folder / f"{part}.safetensors"), folder / f"{part}.safetensors")
    return model.eval().requires_grad_(False)


def load_state(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Loads tensors into a model, with a readable error where names or shapes differ."""
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit {type(model).__name__}: {error}") from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file after comparing its hash with the folder's manifest.

    Raises:
        CheckpointError: if the file is missing, damaged, or differs from the manifest.
    """
    remedy = "reinstall genenv, or rebuild the folder with `genenv zoo build digits --out FOLDER`"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; {remedy}")
    manifest = path.parent / MANIFEST
    expected = json.loads(manifest.read_text()).get(path.name) if manifest.is_file() else None
    found = sha256(path)
    if expected is not None and found != expected:
        raise CheckpointError(f"{path} has sha256 {found}, expected {expected}; {remedy}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}); {remedy}") from None


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file under a temporary name and renames it."""
    with replacing(path) as partial:
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial)


def write_manifest(folder: Path) -> None:
    """Records the sha256 of every weight file of a folder."""
    hashes = {p.name: sha256(p) for p in sorted(folder.glob("*.safetensors"))}
    write_text(folder / MANIFEST, json.dumps(hashes, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file under a temporary name and renames it."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name that becomes `path` when the block ends well, and is removed when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def torch_device(device: str) -> torch.device:
    """Returns a device that can be used here, "auto" being the GPU where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here: {reason}; use device='cpu'") from None
    return chosen
