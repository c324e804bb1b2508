"""The Inception Score (Salimans et al. 2016, sec. 4), computed by torch-fidelity."""

from __future__ import annotations

from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric


def inception_score(logits: Tensor, splits: int = 10, shuffle: bool = True) -> tuple[float, float]:
    """Returns mean and standard deviation over the splits of exp(mean KL(p(y|x) || p(y))).

    Args:
        logits: (N, classes) of a classifier.
        splits: parts of equal size, each with its own marginal p(y).
        shuffle: mix the images first, always in the same order.
    """
    score = isc_features_to_metric(logits, splits=splits, shuffle=shuffle, rng_seed=2020)
    return score["inception_score_mean"], score["inception_score_std"]
