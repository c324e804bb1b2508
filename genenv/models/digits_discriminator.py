"""Tells real digits from generated ones, class by class."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class DigitsDiscriminator(nn.Module):
    """A convolutional discriminator with a head at each of three depths.

    Like the projected discriminator of AdaGen, every place of every head gives one logit, the product of its features
    with an embedding of the class (Miyato and Koyama 2018); all layers are spectrally normalised.

    Args:
        width: channels of the first convolution.
        num_classes: class labels.
        embed_dim: dimension of a head's features.
    """

    def __init__(self, width: int = 32, num_classes: int = 10, embed_dim: int = 32):
        super().__init__()
        self.stages = nn.ModuleList(
            spectral_norm(conv)
            for conv in (
                nn.Conv2d(1, width, 3, padding=1),
                nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),  # 8x8 -> 4x4
                nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1),  # 4x4 -> 2x2
            )
        )
        self.heads = nn.ModuleList(
            spectral_norm(nn.Conv2d(width * 2**depth, embed_dim, 1)) for depth in range(len(self.stages))
        )
        self.classes = nn.ModuleList(nn.Embedding(num_classes, embed_dim) for _ in self.stages)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Returns logits (N, places) of images (N, 1, 8, 8) in [0, 1] with labels (N,); large means real."""
        x, logits = 2 * images - 1, []
        for stage, head, classes in zip(self.stages, self.heads, self.classes, strict=True):
            x = F.leaky_relu(stage(x), 0.2) * math.sqrt(2)
            features = head(x).flatten(2)  # (N, E, places)
            weights = classes(labels)[:, :, None]
            logits.append((features * weights).sum(1) / math.sqrt(features.shape[1]))
        return torch.cat(logits, dim=1)
