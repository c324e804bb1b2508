"""A classifier of a tier's own as the eye of the held-out judge."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from genenv.checkpoints import check_finite, load_tensors, sha256
from genenv.tiers import Reference, folder_with, load_part, tier_of


class ClassifierExtractor:
    """Features, standardised over the real images, so that every dimension weighs the same, and logits.

    The folder holds the network "judge", which has `features(images)` and `head(features)`, and the moments of the real
    images in `reference.safetensors`: "judge.mean", "judge.std" and, in these units, "judge.covariance".
    It runs on the CPU, wherever the images are, so that its numbers do not depend on the device.

    Args:
        backbone: a tier with networks in a folder, or such a folder.
        device: where the images are; nothing follows from it.

    Raises:
        CheckpointError: if a file is missing, damaged or another one.
    """

    dtype = torch.float64
    labelled = True
    device = torch.device("cpu")

    def __init__(self, backbone: str, device: torch.device | str = "cpu"):
        self.tier = tier_of(backbone)
        self.protocol, self.num_classes = self.tier.name, len(self.tier.class_names)
        self.classifier = load_part("judge", backbone)
        path = folder_with("reference.safetensors", backbone) / "reference.safetensors"
        statistics = load_tensors(path)
        check_finite(statistics, path)
        self.mean, self.std = statistics["judge.mean"], statistics["judge.std"]
        self.sha256 = sha256(folder_with("judge.safetensors", backbone) / "judge.safetensors")
        origin = torch.zeros_like(self.mean, dtype=torch.float64)
        self.reference = Reference(origin, statistics["judge.covariance"].double(), sha256(path))

    @functools.cached_property
    def real(self) -> Tensor | None:
        """Features (M, D) of the tier's real images, None where it has none."""
        return None if self.tier.real_images is None else self(self.tier.real_images()[0])[0]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features (N, D) and logits (N, num_classes) of images (N, C, H, W) in [0, 1]."""
        features = self.classifier.features(images.cpu())
        return (features - self.mean) / self.std, self.classifier.head(features)


@torch.no_grad()
def reference_statistics(judge: Any, images: Tensor) -> dict[str, Tensor]:
    """Returns what `reference.safetensors` holds: the moments of real images (M, C, H, W) in a judge's features."""
    features = judge.features(images)
    mean, std = features.mean(0), features.std(0)
    covariance = torch.cov(((features - mean) / std).T.double())
    return {"judge.mean": mean, "judge.std": std, "judge.covariance": covariance}
