"""The judge of the digits tier: a small convolutional classifier and its features."""

from __future__ import annotations

from torch import Tensor, nn


class DigitsClassifier(nn.Module):
    """Classifies 8x8 digits; the layer before the last gives the features of FID and its kin.

    Args:
        width: channels of the first convolution.
        feature_dim: dimension D of the features.
        num_classes: class labels.
    """

    def __init__(self, width: int = 32, feature_dim: int = 64, num_classes: int = 10):
        super().__init__()
        self.feature_dim = feature_dim
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),  # 8x8 -> 4x4
            nn.GELU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(2 * width * 16, feature_dim),
        )
        self.head = nn.Sequential(
            nn.GELU(),
            nn.Linear(feature_dim, feature_dim),
            nn.GELU(),
            nn.Dropout(0.2),
            nn.Linear(feature_dim, num_classes),
        )

    def features(self, images: Tensor) -> Tensor:
        """Returns features (N, D) of images (N, 1, 8, 8) in [0, 1]."""
        return self.body(2 * images - 1)

    def forward(self, images: Tensor) -> Tensor:
        """Returns class logits (N, num_classes)."""
        return self.head(self.features(images))
