"""What is done to logits before a token is drawn, with a setting for each image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

COLDEST = 1e-4
"""What a temperature of 0 is taken for."""


def keep_top_k(logits: Tensor, k: Tensor) -> Tensor:
    """Returns the logits with everything below the k-th largest set to -inf; ties with it stay.

    Args:
        logits: (N, ..., V).
        k: (N,), truncated to whole numbers; below 1, and from V on, all stay.
    """
    size = logits.shape[-1]
    k = k.clamp(max=size).long()  # in this order: no huge number fits a long
    k = torch.where(k <= 0, size, k).view(-1, *[1] * (logits.ndim - 1))
    if _keeps_all(k == size):
        return logits
    ordered = logits.sort(dim=-1, descending=True).values
    cutoff = ordered.gather(-1, (k - 1).expand(*logits.shape[:-1], 1))
    return logits.masked_fill(logits < cutoff, -math.inf)


def keep_top_p(logits: Tensor, p: Tensor) -> Tensor:
    """Returns the logits of the smallest set with probability p, the rest -inf (Holtzman et al. 2020, sec. 3.1).

    The entry that crosses p stays, and so does the likeliest one at any p. At 1 all stay, though rounded probabilities
    may add up to more.

    Args:
        logits: (N, ..., V).
        p: (N,) in [0, 1].
    """
    p = p.float().view(-1, *[1] * (logits.ndim - 1))
    if _keeps_all(p >= 1):
        return logits
    ordered, index = logits.sort(dim=-1, descending=True)
    before = F.pad(ordered.softmax(-1).cumsum(-1)[..., :-1], (1, 0))
    dropped = (before > p) & (p < 1)
    return logits.masked_fill(torch.zeros_like(dropped).scatter(-1, index, dropped), -math.inf)


def at_temperature(logits: Tensor, temperature: Tensor) -> Tensor:
    """Returns logits (N, ..., V) over temperatures (N,); 0 is the limit of small ones: the likeliest token."""
    return logits / temperature.float().clamp(min=COLDEST).view(-1, *[1] * (logits.ndim - 1))


def _keeps_all(unfiltered: Tensor) -> bool:
    """Returns whether all images are known to keep all; on the CPU alone, for to look would wait for a GPU."""
    return unfiltered.device.type == "cpu" and bool(unfiltered.all())
