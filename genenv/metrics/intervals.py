"""How certain a mean over a few repetitions is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats


def interval(values: Sequence[float]) -> str:
    """Returns "mean ± half-width" of Student's 95 % interval for the mean; the value alone where there is one."""
    mean = f"{np.mean(values):.3f}"
    if len(values) == 1:
        return mean
    half_width = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{mean} ± {half_width:.3f}"
