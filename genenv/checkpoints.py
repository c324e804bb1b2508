"""Where weights lie, and loading them safely: the shipped networks, and the released checkpoints of others."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genenv.models.digits_classifier import DigitsClassifier
from genenv.models.digits_discriminator import DigitsDiscriminator
from genenv.models.digits_msvq import DigitsMSVQ
from genenv.models.digits_vq import DigitsVQ
from genenv.models.dit import dit_digits, sit_digits
from genenv.models.llamagen import llamagen_digits
from genenv.models.maskgit import maskgit_digits
from genenv.models.var import var_digits
from genenv.releases import BACKBONES as RELEASED_BACKBONES
from genenv.releases import RELEASES, Download

DIGITS_PARTS: dict[str, Callable[[], nn.Module]] = {
    "vq": DigitsVQ,
    "maskgit": maskgit_digits,
    "msvq": DigitsMSVQ,
    "var": var_digits,
    "llamagen": llamagen_digits,
    "dit": dit_digits,
    "sit": sit_digits,
    "discriminator": DigitsDiscriminator,
    "judge": lambda: DigitsClassifier(width=32),
    "reward_features": lambda: DigitsClassifier(width=24),
}
"""Networks of the digits tier, each in `<part>.safetensors`."""

FOLDER_PARTS = ("clip", "hpsv2")
"""Networks of the digits tier in a folder of the format that transformers or open_clip reads."""

LICENCE = "MIT; trained on the UCI handwritten digits, CC BY 4.0"
"""Of the digits tier."""

BACKBONES = ("digits", *RELEASED_BACKBONES)
"""Names of the generators."""

MANIFEST = "manifest.json"
ZOO_REMEDY = "reinstall genenv, or rebuild the folder with `genenv zoo build digits --out FOLDER`"
RANDOM = "random:"
"""Before the name of a released backbone: its networks with random weights, to measure speed without a download."""
NESTED = ("ema", "model", "module", "state_dict")
"""Keys under which training scripts keep the weights, the averaged ones first."""


class CheckpointError(ValueError):
    """A weight file is missing, damaged or not the expected one."""


def is_released(backbone: str) -> bool:
    """Returns whether a backbone is a released generator, rather than networks of the zoo."""
    return backbone.removeprefix(RANDOM) in RELEASED_BACKBONES


def backbones_with(parts: Sequence[str]) -> list[str]:
    """Returns the named backbones that have all these parts."""
    have = {"digits": DIGITS_PARTS, **RELEASED_BACKBONES}
    return [name for name in BACKBONES if set(parts) <= set(have[name])]


def licences(backbone: str) -> dict[str, str]:
    """Returns {file: licence} of a named backbone's weights."""
    if backbone == "digits":
        return {"*.safetensors, clip, hpsv2": LICENCE}
    return {RELEASES[name].file: RELEASES[name].licence for name in RELEASED_BACKBONES[backbone].values()}


def backbone_folder(backbone: str) -> Path:
    """Returns the folder of digits networks: the shipped one, or a folder that `genenv zoo build` wrote."""
    if backbone == "digits":
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
        f"backbone must be 'digits', another name that `genenv list` shows, or a folder of the zoo, got {backbone!r}"
    )


def load_generator(part: str, backbone: str) -> Any:
    """Returns a network of a backbone in eval mode, without gradients.

    Args:
        part: the network's name, such as "maskgit", "vq" or "judge".
        backbone: a backbone's name, or a folder of the zoo.

    Raises:
        ValueError: if there is no such backbone, or it has no such part.
        CheckpointError: if its file is missing, damaged or another one.
    """
    if is_released(backbone):
        parts = RELEASED_BACKBONES[backbone.removeprefix(RANDOM)]
        _check_part(part, backbone, parts)
        if backbone.startswith(RANDOM):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return RELEASES[parts[part]].build().eval().requires_grad_(False)
        return load_release(parts[part])
    folder = backbone_folder(backbone)
    _check_part(part, backbone, DIGITS_PARTS)
    model = DIGITS_PARTS[part]()
    path = folder / f"{part}.safetensors"
    load_state(model, load_tensors(path), path)
    return model.eval().requires_grad_(False)


def _check_part(part: str, backbone: str, parts: Iterable[str]) -> None:
    if part not in parts:
        raise ValueError(f"backbone {backbone!r} has no {part!r}; it has {', '.join(parts)}")


def load_release(name: str, local_files_only: bool = False) -> Any:
    """Returns the network of a released checkpoint in eval mode, without gradients.

    Args:
        name: a key of `genenv.releases.RELEASES`.
        local_files_only: never download. HF_HUB_OFFLINE=1 in the environment does the same.
    """
    release = RELEASES[name]
    path = locate(release, local_files_only)
    _, record = check_recorded(path)
    with torch.device("meta"):
        model = release.build()
    load_state(model, read_state_dict(path), path)
    record()
    return model.eval().requires_grad_(False)


def checkpoint_folder() -> Path:
    """Returns the folder of the released checkpoints: $GENENV_HOME, by default ~/.cache/genenv."""
    return Path(os.environ.get("GENENV_HOME", "~/.cache/genenv")).expanduser()


def locate(release: Download, local_files_only: bool = False) -> Path:
    """Returns the path of a released file: in `checkpoint_folder`, or downloaded there where that can be done."""
    path = checkpoint_folder() / release.file
    if path.is_file():
        return path
    remedy = f"download it from {release.page} and put it at {path} (or set GENENV_HOME to its folder)"
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    if local_files_only or offline or release.url is None:
        reason = "it cannot be fetched automatically" if release.url is None else "downloads are switched off"
        raise CheckpointError(f"{release.file} is missing and {reason}: {remedy}")
    try:
        with replacing(path) as partial:
            torch.hub.download_url_to_file(release.url, str(partial))
    except OSError as error:
        raise CheckpointError(f"{release.file} could not be downloaded ({error}): {remedy}") from None
    return path


def locate_published(release: Download, hash_prefix: str) -> tuple[Path, str]:
    """Returns the path and sha256 of a file whose name publishes how its hash begins, in torch hub's cache or ours.

    Raises:
        CheckpointError: if it is missing and cannot be downloaded, or its hash begins otherwise.
    """
    cached = (
        Path(torch.hub.get_dir()) / "checkpoints" / release.file
    )  # where torchvision and torch-fidelity keep them
    path = cached if cached.is_file() else locate(release)
    digest = sha256(path)
    if not digest.startswith(hash_prefix):
        raise CheckpointError(
            f"{path} has sha256 {digest}, but it must begin with {hash_prefix}; download it again from {release.page}"
        )
    return path, digest


def check_recorded(path: Path) -> tuple[str, Callable[[], None]]:
    """Compares a released file with its hash at the first use, which is kept beside it.

    Returns:
        The hash, and what records that of a file that is new, to be called once it has proved to be the right one.
    """
    record = path.parent / "recorded_sha256.json"
    known = json.loads(record.read_text()) if record.is_file() else {}
    found = sha256(path)
    if known.get(path.name, found) != found:
        raise CheckpointError(
            f"{path} has sha256 {found}, but {known[path.name]} when it was first used; download it again, "
            f"or remove its line from {record} if you replaced it on purpose"
        )

    def remember() -> None:
        if path.name not in known:
            with contextlib.suppress(OSError):  # a folder that others fill
                write_text(record, json.dumps(known | {path.name: found}, indent=2) + "\n")

    return found, remember


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a .safetensors, .pth, .pt or .ckpt file, wherever the usual scripts nest them.

    Nothing but tensors, plain containers and the `argparse.Namespace` of training scripts is unpickled.

    Raises:
        CheckpointError: if the file cannot be read, or holds no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # a damaged pickle may raise anything, an OSError too
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} is not a readable checkpoint: {type(error).__name__} {reason}"
        ) from None
    while isinstance(state, dict) and not all(isinstance(value, Tensor) for value in state.values()):
        inner = [state[key] for key in NESTED if isinstance(state.get(key), dict)]
        if not inner:
            break
        state = inner[0]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} holds no state dict, at the top or under {', '.join(NESTED)}")
    return state


def load_state(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Loads tensors into a model, with a readable error where names or shapes differ."""
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit {type(model).__name__}: {error}") from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file after comparing its hash with the folder's manifest.

    Raises:
        CheckpointError: if the file is missing, damaged, or differs from the manifest.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; {ZOO_REMEDY}")
    manifest = path.parent / MANIFEST
    expected = json.loads(manifest.read_text()).get(path.name) if manifest.is_file() else None
    found = sha256(path)
    if expected is not None and found != expected:
        raise CheckpointError(f"{path} has sha256 {found}, expected {expected}; {ZOO_REMEDY}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}); {ZOO_REMEDY}") from None


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file under a temporary name and renames it."""
    with replacing(path) as partial:
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial)


def checked_folder(backbone: str, part: str) -> Path:
    """Returns the folder of a part of the zoo that another library reads, after comparing it with the manifest.

    Raises:
        CheckpointError: if a file is missing, damaged or not in the manifest.
    """
    zoo = backbone_folder(backbone)
    known = json.loads((zoo / MANIFEST).read_text())
    expected = {name: digest for name, digest in known.items() if name.startswith(f"{part}/")}
    if not expected:
        raise CheckpointError(f"{zoo / part} is not in {zoo / MANIFEST}; {ZOO_REMEDY}")
    for name, path in _files(zoo / part, zoo):
        if expected.get(name) != sha256(path):
            raise CheckpointError(f"{path} is not the file that {zoo / MANIFEST} names; {ZOO_REMEDY}")
        del expected[name]
    if expected:
        raise CheckpointError(f"{zoo / next(iter(expected))} is missing; {ZOO_REMEDY}")
    return zoo / part


def _files(folder: Path, root: Path) -> list[tuple[str, Path]]:
    """Returns (name, path) of every file below a folder, named from `root`."""
    return [(p.relative_to(root).as_posix(), p) for p in sorted(folder.rglob("*")) if p.is_file()]


def write_manifest(folder: Path) -> None:
    """Records the sha256 of every weight file of a folder, and of every file in the folders of `FOLDER_PARTS`."""
    weights = [(p.name, p) for p in sorted(folder.glob("*.safetensors"))]
    inner = [pair for part in FOLDER_PARTS for pair in _files(folder / part, folder)]
    hashes = {name: sha256(path) for name, path in weights + inner}
    write_text(folder / MANIFEST, json.dumps(hashes, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file under a temporary name and renames it."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name that becomes `path` when the block ends well, and is removed when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
