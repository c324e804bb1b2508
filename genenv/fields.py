"""What an entry of an observation, or an action, looks like for one image."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

LATENT_LIMIT = 1e4
"""Bound of every latent number: far beyond what data give, and finite in half precision."""
FEATURE_LIMIT = 1e6
"""Bound of every feature that is shown to a policy."""


PREDICTED = frozenset({"denoised", "features", "logits", "mean", "std"})
"""Entries of an observation for which a generator looks ahead: who wants them asks for them."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One tensor for each image: its shape, type and bounds.

    A whole number (shape ()) with the lower bound 0 is a choice: Gymnasium's `Discrete`.

    Attributes:
        shape: for one image.
        dtype: torch.float32 or torch.int64.
        low, high: bounds, of all numbers or of each along the last axis.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    low: float | tuple[float, ...]
    high: float | tuple[float, ...]

    def zeros(self, number: int, device: torch.device) -> Tensor:
        """Returns the entry of `number` images before anything is known of them."""
        return torch.zeros(number, *self.shape, dtype=self.dtype, device=device)


def choice(number: int) -> Field:
    """Returns the field of one of `number` possibilities."""
    return Field((), torch.int64, 0, number - 1)


def latent_field(shape: tuple[int, ...]) -> Field:
    """Returns the field of latents (C, h, w)."""
    return Field(shape, torch.float32, -LATENT_LIMIT, LATENT_LIMIT)


def feature_field(length: int, dim: int) -> Field:
    """Returns the field of a network's hidden states (L, D)."""
    return Field((length, dim), torch.float32, -FEATURE_LIMIT, FEATURE_LIMIT)


def limit_latents(latents: Tensor) -> Tensor:
    """Returns latents within the bounds of `latent_field`."""
    return latents.clamp(-LATENT_LIMIT, LATENT_LIMIT)


def shown_features(hidden: Tensor) -> Tensor:
    """Returns hidden states (N, L, D) of any type as float32 within the bounds of `feature_field`."""
    return hidden.float().clamp(-FEATURE_LIMIT, FEATURE_LIMIT)
