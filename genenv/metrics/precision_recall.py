"""Precision and recall (Kynkaanniemi et al. 2019), computed by torch-fidelity."""

from __future__ import annotations

from torch import Tensor


def precision_recall(generated: Tensor, real: Tensor, k: int = 3) -> tuple[float, float]:
    """Returns precision and recall (eq. 1 and 2) of features (N, D) and (M, D).

    Around each feature of a set lies a ball that reaches its k-th nearest neighbour in the set. Precision is the share
    of generated features in a ball of real ones, recall the share of real features in a ball of generated ones.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    found = prc_features_to_metric(generated, real, prc_neighborhood=k, verbose=False)
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]
