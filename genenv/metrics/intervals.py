"""How certain a number is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

Interval = tuple[float, float]
"""Lower and upper end, of 95 %."""


def interval(values: Sequence[float]) -> str:
    """Returns "mean ± half-width" of Student's 95 % interval for the mean; the value alone where there is one."""
    mean = f"{np.mean(values):.3f}"
    if len(values) == 1:
        return mean
    low, high = student(values)
    return f"{mean} ± {(high - low) / 2:.3f}"


def student(values: Sequence[float]) -> Interval:
    """Returns Student's 95 % interval for the mean of at least two independent values."""
    from scipy.special import stdtrit

    mean, number = np.mean(values), len(values)
    half_width = stdtrit(number - 1, 0.975) * np.std(values, ddof=1) / number**0.5
    return float(mean - half_width), float(mean + half_width)


def bootstrap(
    statistics: Callable[[Tensor], Mapping[str, float]],
    values: Mapping[str, float],
    strata: Tensor,
    resamples: int = 200,
) -> dict[str, Interval]:
    """Returns 95 % intervals of statistics of independent samples (Efron 1979, percentiles), always the same.

    Samples are drawn with replacement within their stratum, for labels that follow a plan do not vary. The percentiles
    are moved so that the resamples' mean lies on the value: a resample repeats samples, and statistics such as FID,
    which grow where samples are fewer, come out shifted. What is told is how much such a statistic of this many samples
    varies, not how far it is from that of infinitely many.

    Args:
        statistics: gives the statistics of samples chosen by index (N,).
        values: the statistics of the samples themselves.
        strata: (N,) int64, the group of each sample, such as its label.
        resamples: draws.
    """
    generator = torch.Generator().manual_seed(0)
    order, counts = strata.argsort(stable=True), strata.bincount()
    stratum = strata[order]
    first, size = (counts.cumsum(0) - counts)[stratum], counts[stratum]
    draws = []
    for _ in range(resamples):
        uniform = torch.rand(len(strata), generator=generator, dtype=torch.float64)
        draws.append(statistics(order[first + (uniform * size).long()]))
    intervals = {}
    for name, value in values.items():
        drawn = np.array([draw[name] for draw in draws])
        low, high = value + np.percentile(drawn, (2.5, 97.5)) - drawn.mean()
        intervals[name] = (float(low), float(high))
    return intervals
