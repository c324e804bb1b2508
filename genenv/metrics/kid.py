"""The kernel distance (KID, Binkowski et al. 2018), computed by torch-fidelity."""

from __future__ import annotations

from torch import Tensor

SUBSETS, SUBSET_SIZE = 20, 1000


def kid(generated: Tensor, real: Tensor) -> float:
    """Returns the squared MMD of features (N, D) and (M, D) under the cubic kernel, the mean over 20 subsets.

    The subsets hold 1,000 features of each side, or as many as the smaller one has. The estimate has no bias and may
    be below 0.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    size = min(SUBSET_SIZE, len(generated), len(real))
    # A small difference of large sums: float32 would round it otherwise in every process.
    found = kid_features_to_metric(
        generated.double(), real.double(), kid_subsets=SUBSETS, kid_subset_size=size, verbose=False
    )
    return found[KEY_METRIC_KID_MEAN]
