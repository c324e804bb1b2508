"""The Frechet distance to real images (FID, Heusel et al. 2017), and the released statistics of ImageNet."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genenv.checkpoints import CheckpointError
from genenv.metrics.frechet import Moments, frechet_distance
from genenv.tiers import Reference


def fid(generated: Moments, reference: Reference) -> float:
    """Returns the Frechet distance of generated features from the real ones."""
    mean, covariance = generated.mean.cpu(), generated.covariance.cpu()  # few GPUs are fast in float64
    return frechet_distance(mean, covariance, reference.mean, reference.covariance)


def read_adm_moments(path: Path, dim: int = 2048) -> tuple[Tensor, Tensor]:
    """Returns the mean (D,) and covariance (D, D), float64, of a reference .npz of ADM (Dhariwal and Nichol 2021).

    Raises:
        CheckpointError: if the file is not such a one.
    """
    mean, covariance = _arrays(path, "mu", "sigma")
    if mean.shape != (dim,) or covariance.shape != (dim, dim):
        raise CheckpointError(
            f"{path} must hold mu ({dim},) and sigma ({dim}, {dim}), got {mean.shape} and {covariance.shape}"
        )
    return torch.from_numpy(mean).double(), torch.from_numpy(covariance).double()


def read_adm_images(path: Path, num_images: int) -> Tensor | None:
    """Returns the first images (N, H, W, 3) uint8 of a reference .npz of ADM, None where it has no images."""
    try:
        with zipfile.ZipFile(path) as file:
            if "arr_0.npy" not in file.namelist():
                return None
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is not an .npz file: {error}") from None
    (images,) = _arrays(path, "arr_0")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise CheckpointError(
            f"{path} must hold images (N, H, W, 3) of uint8, got {images.shape} of {images.dtype}"
        )
    return torch.from_numpy(images[:num_images])


def _arrays(path: Path, *names: str) -> list[np.ndarray]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return [file[name] for name in names]
    except OSError:
        raise
    except (KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} is not an .npz file with {', '.join(names)}: {type(error).__name__} {reason}"
        ) from None
