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

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().div_(16).view(-1, 1, 8, 8)
    return images, torch.from_numpy(labels).long()


def real_like(real: tuple[Tensor, Tensor], labels: Tensor, generator: torch.Generator) -> Tensor:
    """Returns one random real image (N, C, H, W) of each label (N,), on the labels' device.

    Args:
        real: images (M, C, H, W) and their labels (M,), on the CPU, at least one of each wanted label.
        labels: what is wanted.
        generator: draws, on the CPU.

    Raises:
        ValueError: if a wanted label has no image.
    """
    images, classes = real
    wanted = labels.cpu()
    order = classes.argsort(stable=True)
    counts = classes.bincount(minlength=int(wanted.max()) + 1 if len(wanted) else 0)
    if not counts[wanted].all():
        raise ValueError(f"there is no real image of label {wanted[counts[wanted] == 0][0].item()}")
    starts = counts.cumsum(0) - counts
    within = (torch.rand(len(wanted), generator=generator) * counts[wanted]).long()
    return images[order[starts[wanted] + within]].to(labels.device)
