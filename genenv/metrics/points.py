"""The judge of a mixture's points, which are their own features."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from genenv.models.gaussian_mixture import load_mixture, picture
from genenv.tiers import Reference

REAL_POINTS = 2000
"""Exact points that generated ones are compared with."""


class PointExtractor:
    """Points and, since they have no labels, logits of a single class.

    Args:
        backbone: the mixture.
        device: where the images are; nothing follows from it.
    """

    protocol = "points"
    dtype = torch.float64
    labelled = False
    num_classes = 1
    device = torch.device("cpu")

    def __init__(self, backbone: str, device: torch.device | str = "cpu"):
        self.mixture = load_mixture(backbone)
        self.picture, self.sha256 = picture(self.mixture), self.mixture.sha256
        self.reference = Reference(self.mixture.mean, self.mixture.covariance, self.sha256)

    @functools.cached_property
    def real(self) -> Tensor | None:
        """Exact points (M, d) float32."""
        return self.mixture.sample(REAL_POINTS).float()

    def features(self, images: Tensor) -> Tensor:
        """Returns points (N, d) float32 of images (N, 1, 1, d) in [0, 1], on their device."""
        return self.picture.points(images).float()

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns points (N, d) float32 and logits (N, 1), all 0, of images (N, 1, 1, d) in [0, 1]."""
        return self.features(images.cpu()), torch.zeros(len(images), 1)
