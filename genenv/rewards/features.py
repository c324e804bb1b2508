"""The features in which rewards compare generated with real images."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genenv.checkpoints import (
    CheckpointError,
    check_finite,
    check_recorded,
    load_state,
    locate,
    locate_published,
    read_state_dict,
    save_tensors,
)
from genenv.metrics.fid import read_adm_images
from genenv.metrics.frechet import Moments, moments
from genenv.metrics.inception import CHUNK, REAL_IMAGES
from genenv.releases import DOWNLOADS, Download
from genenv.tiers import FeatureExtractor, load_part, tier_of

WEIGHTS = "inception-torchvision"
"""Of `genenv.releases.DOWNLOADS`."""


class TorchvisionInception:
    """The features of torchvision's Inception-v3 before its last layer, those of LOO-FID (arXiv 2603.23086).

    Images are resized to 299 pixels, bilinear and antialiased, and scaled to 2 x - 1. That is what torchvision gives
    these weights: it normalises by ImageNet's mean and std, which its network (transform_input=True) undoes again.

    Nothing of the weights is unpickled but tensors, and those only after their hash is known to be right.

    Args:
        pixels: side of the real images; others are resized to it first, so that none are sharper than those.
        device: where the network runs.

    Attributes:
        sha256: of the weights.

    Raises:
        ImportError: if torchvision is missing.
        CheckpointError: if the weights are missing, damaged or others.
    """

    dim = 2048

    def __init__(self, pixels: int, device: torch.device | str = "cpu"):
        self.pixels, self.device = pixels, torch.device(device)
        path, self.sha256 = locate_published(DOWNLOADS[WEIGHTS])
        self.network = _build(path).to(self.device)

    def features(self, images: Tensor) -> Tensor:
        """Returns (N, 2048) float32 of images (N, 3, H, W) in [0, 1]."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"Inception takes images (N, 3, H, W), got {tuple(images.shape)}")
        return torch.cat([self.network(self._input(chunk)) for chunk in images.split(CHUNK)])

    def _input(self, images: Tensor) -> Tensor:
        """Returns the network's input (N, 3, 299, 299) in [-1, 1]."""
        images = images.to(self.device).float()
        for side in (self.pixels, 299):
            images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
        return 2 * images - 1


def reward_features(backbone: str, device: str) -> tuple[FeatureExtractor, Tensor, Tensor]:
    """Returns what rewards see of a backbone's images, and the mean (D,) and covariance (D, D) of the real ones.

    No held-out metric uses these networks: for digits a classifier, for ImageNet torchvision's Inception-v3, where FID
    is that of torch-fidelity. The two Inceptions are trained on the same images, and the real ones are those that
    precision and recall compare with.

    Raises:
        ValueError: if there is no such backbone, or its tier has no features for rewards.
        ImportError: if a released backbone needs torchvision, and it is missing.
        CheckpointError: if a file is missing, damaged or another one.
    """
    return tier_of(backbone).need("reward_features")(backbone, device)


def classifier_features(backbone: str, device: str) -> tuple[FeatureExtractor, Tensor, Tensor]:
    """Returns the network "reward_features" of a folder, and the moments of its tier's real images."""
    classifier = load_part("reward_features", backbone)
    with torch.no_grad():
        mean, covariance = moments(classifier.features(tier_of(backbone).need("real_images")()[0]))
    return classifier.to(device), mean.to(device), covariance.to(device)


def inception_features(
    pixels: int, reference: Download, device: str
) -> tuple[TorchvisionInception, Tensor, Tensor]:
    """Returns torchvision's Inception for images of a side in pixels, and the moments of a reference batch of ADM."""
    inception = TorchvisionInception(pixels, device)
    mean, covariance = real_moments(inception, reference)
    return inception, mean.to(device), covariance.to(device)


def real_moments(inception: TorchvisionInception, reference: Download) -> tuple[Tensor, Tensor]:
    """Returns the mean (D,) and covariance (D, D), float64, of the features of a reference batch of ADM.

    They are computed once and kept beside the batch, in a file whose name says of which batch and weights they are.

    Raises:
        CheckpointError: if the batch is missing, damaged, another one, or holds no images.
    """
    path = locate(reference)
    digest, record = check_recorded(path)
    kept = path.with_name(f"{path.stem}-{digest[:8]}-inception_v3-{inception.sha256[:8]}.safetensors")
    if not kept.is_file():
        seen = _moments(inception, path, reference)
        record()
        if not os.access(path.parent, os.W_OK):  # a folder that others fill
            return seen.mean, seen.covariance
        save_tensors({"mean": seen.mean, "covariance": seen.covariance}, kept)
    _, record = check_recorded(kept)
    state = read_state_dict(kept)
    check_finite(state, kept)
    record()
    return state["mean"], state["covariance"]


@torch.no_grad()
def _moments(inception: TorchvisionInception, path: Path, reference: Download) -> Moments:
    images = read_adm_images(path, REAL_IMAGES)
    if images is None:
        raise CheckpointError(
            f"{path} holds moments but no images; download the whole reference batch from {reference.page}"
        )
    seen = Moments(inception.dim, device=inception.device)
    for chunk in images.permute(0, 3, 1, 2).split(CHUNK):
        seen.update(inception.features(chunk.to(inception.device).float() / 255))
    return seen


def _build(path: Path) -> nn.Module:
    try:
        from torchvision.models import inception_v3
    except ImportError:
        raise ImportError("features of ImageNet need torchvision: pip install 'genenv[metrics]'") from None
    with torch.device("meta"):
        network = inception_v3(weights=None, init_weights=False, aux_logits=True)
    load_state(network, read_state_dict(path), path)
    network.AuxLogits = None
    network.register_module("fc", nn.Identity())
    return network.eval().requires_grad_(False)
