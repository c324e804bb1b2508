"""The real images a tier is judged against."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """Returns the 1,797 handwritten digits of scikit-learn: images (1797, 1, 8, 8) in [0, 1] and labels (1797,).

    Source: UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), as shipped in scikit-learn:
    nothing is downloaded.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float().div_(16).unsqueeze(1)
    return images, torch.from_numpy(data.target).long()
