"""Weight files: reading them safely, writing them whole, and fetching those of others."""

from __future__ import annotations

import argparse
import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genenv.json_text import read_object
from genenv.releases import RELEASES, Download

MANIFEST = "manifest.json"
ZOO_REMEDY = "reinstall genenv, or rebuild the folder with `genenv zoo build`"
NESTED = ("ema", "model", "module", "state_dict")
"""Keys under which training scripts keep the weights, the averaged ones first."""


WRITE_ERRORS = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
"""What the operating system says of a file that cannot be written."""


class CheckpointError(ValueError):
    """A weight file is missing, damaged or not the expected one."""


class _Callback:
    """Stands for a class that old checkpoints of Lightning name, as the key of what that callback kept."""


HARMLESS = [
    argparse.Namespace,
    (_Callback, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
]
"""What may be unpickled besides tensors and plain containers."""


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
    tensors = {
        name: value for name, value in read_state_dict(path).items() if name.startswith(release.prefix)
    }
    load_state(model, {name.removeprefix(release.prefix): value for name, value in tensors.items()}, path)
    record()
    return model.eval().requires_grad_(False)


def checkpoint_folder() -> Path:
    """Returns the folder of the released checkpoints: $GENENV_HOME, by default ~/.cache/genenv."""
    return Path(os.environ.get("GENENV_HOME", "~/.cache/genenv")).expanduser()


def locate(release: Download, local_files_only: bool = False) -> Path:
    """Returns the path of a file of others: in `checkpoint_folder`, or downloaded there where that can be done.

    What Hugging Face hosts is fetched by huggingface_hub: a broken connection goes on where it was, `hf auth login`
    opens gated repositories, HF_ENDPOINT names a mirror.

    Raises:
        CheckpointError: if it is missing and cannot be downloaded.
        ImportError: if huggingface_hub is needed and missing.
    """
    path = checkpoint_folder() / release.file
    if path.is_file():
        return path
    remedy = f"download it from {release.page} and put it at {path} (or set GENENV_HOME to its folder)"
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    if release.repo is None and release.url is None:
        raise CheckpointError(f"{release.file} is missing and it cannot be fetched automatically: {remedy}")
    if local_files_only or offline:
        raise CheckpointError(f"{release.file} is missing and downloads are switched off: {remedy}")
    if release.repo is not None:
        _from_hub(release, path, remedy)
        return path
    assert release.url is not None
    try:
        with replacing(path) as partial:
            torch.hub.download_url_to_file(release.url, str(partial))
    except OSError as error:
        raise CheckpointError(f"{release.file} could not be downloaded ({error}): {remedy}") from None
    return path


def _from_hub(release: Download, path: Path, remedy: str) -> None:
    """Downloads a file of a Hugging Face repository to a path that ends in its name there."""
    assert release.repo is not None
    try:
        import huggingface_hub
        from huggingface_hub.errors import GatedRepoError
    except ImportError:
        raise ImportError(
            f"{release.file} is missing, and a download needs huggingface_hub: pip install 'genenv[hub]', or {remedy}"
        ) from None
    try:
        huggingface_hub.hf_hub_download(
            release.repo, path.name, revision=release.revision, local_dir=path.parent
        )
    except GatedRepoError:
        raise CheckpointError(
            f"{release.file} is in a gated repository: accept its terms on {release.page} and log in with "
            f"`hf auth login`, or {remedy}"
        ) from None
    except Exception as error:  # the library and its HTTP client have many types
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{release.file} could not be downloaded ({type(error).__name__} {reason}): {remedy}"
        ) from None


def locate_published(release: Download) -> tuple[Path, str]:
    """Returns the path and sha256 of a file whose hash is published, in torch hub's cache or ours.

    Raises:
        CheckpointError: if it is missing and cannot be downloaded, or its hash begins otherwise.
    """
    # where torchvision and torch-fidelity keep them
    cached = Path(torch.hub.get_dir()) / "checkpoints" / release.file
    path = cached if cached.is_file() else locate(release)
    digest = sha256(path)
    if not digest.startswith(release.sha256):
        raise CheckpointError(
            f"{path} has sha256 {digest}, but it must begin with {release.sha256}; "
            f"download it again from {release.page}"
        )
    return path, digest


def check_recorded(path: Path) -> tuple[str, Callable[[], None]]:
    """Compares a released file with its hash at the first use, which is kept beside it.

    Returns:
        The hash, and what records that of a file that is new, to be called once it has proved to be the right one.
    """
    record = path.parent / "recorded_sha256.json"
    known = read_json(record) if record.is_file() else {}
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

    Nothing but tensors, plain containers and what is `HARMLESS` is unpickled.

    Raises:
        CheckpointError: if the file cannot be read, or holds no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS):
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
    """Loads the tensors of a file into a model.

    Raises:
        CheckpointError: if names or shapes differ, or a number is not finite.
    """
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit {type(model).__name__}: {error}") from None
    check_finite(dict(model.named_parameters()), path)
    check_finite({n: v for n, v in model.named_buffers() if not v.is_meta and not _is_mask(v)}, path)


def check_finite(tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Raises a CheckpointError that names the first tensor with a NaN or an infinity."""
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            wrong = value.detach()[~value.isfinite()][0].item()
            raise CheckpointError(f"{source}: {name} must be finite, got {wrong}; the weights are damaged")


def _is_mask(value: Tensor) -> bool:
    """Returns whether a buffer is an additive mask of attention: zeros, and minus infinity where nothing is seen."""
    return value.is_floating_point() and bool(((value == 0) | (value == -torch.inf)).all())


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file after comparing its hash with the folder's manifest.

    Raises:
        CheckpointError: if the file is missing, damaged, not in the manifest, or differs from it.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; {ZOO_REMEDY}")
    manifest = path.parent / MANIFEST
    if manifest.is_file():
        expected, found = read_json(manifest).get(path.name), sha256(path)
        if expected is None:
            raise CheckpointError(f"{path} is not in {manifest}; {ZOO_REMEDY}")
        if found != expected:
            raise CheckpointError(f"{path} has sha256 {found}, expected {expected}; {ZOO_REMEDY}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}); {ZOO_REMEDY}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object of a JSON file.

    Raises:
        CheckpointError: if it is not readable JSON, or no object; see `genenv.json_text`.
    """
    try:
        return read_object(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file under a temporary name and renames it."""
    with replacing(path) as partial:
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial)


def prepare_file(path: Path) -> None:
    """Makes the folder of a file that will be written, so that a mistake is told before anything is spent.

    Raises:
        ValueError: if the path is that of a folder.
    """
    if path.is_dir():
        raise ValueError(f"out must be a file, got the folder {path}; name a file in it")
    path.parent.mkdir(parents=True, exist_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file under a temporary name and renames it."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name that becomes `path` when the block ends well, and is removed when it fails.

    The content is on the disk before the name changes, so that a crash leaves the old file or the new one. What a
    killed process left of the same file is removed.

    Raises:
        OSError: if it cannot be written, naming `path`, whose old content stays.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        yield partial
        _flush(partial)
        os.replace(partial, path)
        _flush(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _disk_error(error)
        if reason is None:
            raise
        raise OSError(f"{path} could not be written: {reason}") from error
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that becomes `folder` when the block ends well, and is removed when it fails."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _disk_error(error: Exception) -> str | None:
    """Returns what the operating system said to a failed write, None where the error is another."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in WRITE_ERRORS else None
    if isinstance(error, SafetensorError) and "os error" in str(error):
        return str(error)
    if "PytorchStreamWriter" in str(error) or "inline_container" in str(error):  # torch hides the reason
        return "the disk may be full, or a quota used up"
    return None


def _flush(path: Path) -> None:
    """Waits until a file's content, or a directory's names, are on the disk."""
    if path.is_dir() and os.name == "nt":  # directories cannot be opened there
        return
    # Windows flushes no file that is open for reading alone, and elsewhere no directory is open for writing.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    """Removes the temporary files of `path` whose writers are no more."""
    for other in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
        writer = other.name.removeprefix(f"{path.name}.").removesuffix(".partial")
        if writer.isdecimal() and not _is_alive(int(writer)):
            other.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # where signal 0 is no question
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


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
        torch.zeros(1, device=chosen).item()  # "meta" makes tensors, but there are no numbers in them
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(f"device {device!r} cannot be used here: {reason}; use device='cpu'") from None
    return chosen
