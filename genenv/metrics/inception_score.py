"""The Inception Score (Salimans et al. 2016, sec. 4)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SPLITS = 10
SHUFFLE_SEED = 2020
"""Of torch-fidelity and AdaGen."""


def inception_score(logits: Tensor, splits: int = SPLITS, shuffle: bool = True) -> tuple[float, float]:
    """Returns mean and standard deviation over the splits of exp(mean KL(p(y|x) || p(y))), by torch-fidelity.

    Args:
        logits: (N, classes) of a classifier.
        splits: parts of equal size, each with its own marginal p(y).
        shuffle: mix the images first, always in the same order.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric

    score = isc_features_to_metric(logits, splits=splits, shuffle=shuffle, rng_seed=SHUFFLE_SEED)
    return score["inception_score_mean"], score["inception_score_std"]


class InceptionScore:
    """The score of logits that come batch by batch: that of `inception_score`, with 10 splits and shuffling.

    The mean divergence of a split is the entropy of its mean probabilities less its mean entropy, so that sums over
    the images are all that is kept.

    Args:
        num_images: logits that will come; it decides who is in which split.
        num_classes: C.
        device: where the sums are kept.

    Raises:
        ValueError: if there are fewer images than splits.
    """

    def __init__(self, num_images: int, num_classes: int, device: torch.device | str | None = None):
        if num_images < SPLITS:
            raise ValueError(f"the Inception Score needs at least {SPLITS} images, got {num_images}")
        sizes = np.diff(np.arange(SPLITS + 1) * num_images // SPLITS)
        order = np.random.RandomState(SHUFFLE_SEED).permutation(num_images)
        split = np.empty(num_images, dtype=np.uint8)
        split[order] = np.repeat(np.arange(SPLITS, dtype=np.uint8), sizes)
        self.split, self.seen = torch.from_numpy(split), 0
        self.sizes = torch.from_numpy(sizes).to(device)
        self.probability = torch.zeros(SPLITS, num_classes, dtype=torch.float64, device=device)
        self.entropy = torch.zeros(SPLITS, dtype=torch.float64, device=device)

    def update(self, logits: Tensor) -> None:
        """Adds logits (N, C)."""
        logits = logits.to(self.probability)
        split = self.split[self.seen : self.seen + len(logits)].long().to(logits.device)
        probability = logits.softmax(1)
        self.probability.index_add_(0, split, probability)
        self.entropy.index_add_(0, split, torch.special.entr(probability).sum(1))
        self.seen += len(logits)

    def mean(self) -> float:
        """Returns the mean of the splits' scores, once all logits have come."""
        marginal = self.probability / self.sizes[:, None]
        return (torch.special.entr(marginal).sum(1) - self.entropy / self.sizes).exp().mean().item()
