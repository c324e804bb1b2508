"""A fixed scorer: how surely a classifier reads the label that was asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genenv.protocols import Context
from genenv.tiers import load_part


class ClassifierReward:
    """Pays the probability of an image's label, in (0, 1). It rewards fidelity alone and is blind to diversity.

    Args:
        classifier: images (N, C, H, W) -> class logits.
    """

    name = "classifier"

    def __init__(self, classifier: nn.Module):
        self.classifier = classifier

    @torch.no_grad()
    def __call__(self, images: Tensor, context: Context) -> Tensor:
        """Returns (N,) in (0, 1)."""
        probabilities = self.classifier(images).softmax(-1)
        return probabilities.gather(1, context[:, None])[:, 0]


def make(backbone: str, device: str) -> ClassifierReward:
    """Returns the reward on a classifier that no held-out metric uses."""
    return ClassifierReward(load_part("reward_features", backbone).to(device))
