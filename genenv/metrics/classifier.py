"""The digits tier's classifier as the eye of the held-out judge."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from genenv.checkpoints import backbone_folder, load_generator, load_tensors, sha256
from genenv.data import digits
from genenv.metrics.fid import Reference


class DigitsExtractor:
    """Features, standardised over the real images, so that every dimension weighs the same, and logits.

    It runs on the CPU, wherever the images are, so that its numbers do not depend on the device.

    Args:
        backbone: "digits", or a folder of the zoo.
    """

    protocol = "digits"
    dtype = torch.float64
    labelled = True
    num_classes = 10
    device = torch.device("cpu")

    def __init__(self, backbone: str):
        self.classifier = load_generator("judge", backbone)
        folder = backbone_folder(backbone)
        path = folder / "reference.safetensors"
        statistics = load_tensors(path)
        self.mean, self.std = statistics["judge.mean"], statistics["judge.std"]
        self.sha256 = sha256(folder / "judge.safetensors")
        origin = torch.zeros_like(self.mean, dtype=torch.float64)
        self.reference = Reference(origin, statistics["judge.covariance"].double(), sha256(path))

    @functools.cached_property
    def real(self) -> Tensor | None:
        """Features (1797, D) of the real images."""
        return self(digits()[0])[0]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features (N, D) and logits (N, 10) of images (N, 1, 8, 8) in [0, 1]."""
        features = self.classifier.features(images.cpu())
        return (features - self.mean) / self.std, self.classifier.head(features)
