"""The features in which rewards compare generated with real images."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from genenv.checkpoints import is_released, load_generator
from genenv.data import digits
from genenv.metrics.frechet import moments
from genenv.metrics.inception import PROTOCOLS, InceptionExtractor


class Extractor(Protocol):
    """Gives features of images."""

    def features(self, images: Tensor) -> Tensor:
        """Returns (N, D) of images (N, C, H, W) in [0, 1]."""
        ...


class InceptionFeatures:
    """The 2,048 features of FID's Inception-v3."""

    def __init__(self, inception: InceptionExtractor):
        self.inception = inception

    def features(self, images: Tensor) -> Tensor:
        """Returns (N, 2048) of images (N, 3, H, W) in [0, 1]."""
        return self.inception(images)[0]


def reward_features(backbone: str, device: str) -> tuple[Extractor, Tensor, Tensor]:
    """Returns what rewards see of a backbone's images, and the mean (D,) and covariance (D, D) of the real ones.

    For digits that is a classifier that no held-out metric uses. For ImageNet it is the Inception of FID itself, whose
    moments alone are published (by ADM): held-out FID is not independent of such a reward; watch precision and recall.
    """
    if is_released(backbone):
        inception = InceptionExtractor(backbone, PROTOCOLS[0], device)
        mean, covariance = inception.reference.mean, inception.reference.covariance
        return InceptionFeatures(inception), mean.to(device), covariance.to(device)
    classifier = load_generator("reward_features", backbone)
    with torch.no_grad():
        mean, covariance = moments(classifier.features(digits()[0]))
    return classifier.to(device), mean.to(device), covariance.to(device)
