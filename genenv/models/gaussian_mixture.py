"""Mixtures of Gaussians: data whose denoiser is known exactly."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import math
from pathlib import Path

import torch
from torch import Tensor

LIMIT = 4.0
"""The edge of a point's image over the root mean square of the data."""


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianMixture:
    """The density sum_k w_k N(m_k, s_k^2 I).

    Attributes:
        weights: (M,) float64, positive, with the sum 1.
        means: (M, d) float64.
        stds: (M,) float64, positive.

    Raises:
        ValueError: if they are not of these shapes and ranges.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor

    def __post_init__(self):
        number = len(self.means)
        if self.means.ndim != 2 or self.weights.shape != (number,) or self.stds.shape != (number,):
            shapes = [tuple(x.shape) for x in (self.weights, self.means, self.stds)]
            raise ValueError(f"weights, means and stds must be (M,), (M, d) and (M,), got {shapes}")
        if not (bool((self.weights > 0).all()) and math.isclose(self.weights.sum().item(), 1, abs_tol=1e-6)):
            raise ValueError(f"weights must be positive with the sum 1, got {self.weights.tolist()}")
        if not bool((self.stds > 0).all()):
            raise ValueError(f"stds must be positive, got {self.stds.tolist()}")
        for name in ("weights", "means", "stds"):
            object.__setattr__(self, name, getattr(self, name).double())

    @property
    def dim(self) -> int:
        """Coordinates d of a point."""
        return self.means.shape[1]

    @property
    def spread(self) -> float:
        """The root mean square of the coordinates."""
        return (self.weights @ (self.means.square().mean(1) + self.stds.square())).sqrt().item()

    @property
    def mean(self) -> Tensor:
        """The mean (d,)."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """The covariance (d, d)."""
        apart = self.means - self.mean
        within = (self.weights @ self.stds.square()) * torch.eye(self.dim, dtype=torch.float64)
        return (self.weights * apart.T) @ apart + within

    @property
    def sha256(self) -> str:
        """Of its numbers."""
        numbers = torch.cat([self.weights, self.means.flatten(), self.stds])
        return hashlib.sha256(str(numbers.tolist()).encode()).hexdigest()

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns E[data | x] (N, d) for x = data + sigma noise (N, d) float64, sigma (N,) float64.

        D(x; sigma) = sum_k r_k (s_k^2 x + sigma^2 m_k) / (s_k^2 + sigma^2), r_k the probability of component k given x.
        """
        weights, means, stds = (p.to(x.device) for p in (self.weights, self.means, self.stds))
        variance = stds.square() + sigma.square()[:, None]  # (N, M)
        distance = (x[:, None] - means).square().sum(-1)  # (N, M)
        share = (weights.log() - distance / (2 * variance) - self.dim / 2 * variance.log()).softmax(-1)
        data = (stds.square()[:, None] * x[:, None] + sigma.square()[:, None, None] * means) / variance[
            ..., None
        ]
        return (share[..., None] * data).sum(1)

    def points(self, uniform: Tensor, sigma: float = 0.0) -> Tensor:
        """Returns x = data + sigma noise (N, d) float64 made of uniform numbers (N, 1 + d) in (0, 1)."""
        weights, means, stds = (p.to(uniform.device) for p in (self.weights, self.means, self.stds))
        component = torch.searchsorted(weights.cumsum(0), uniform[:, 0].contiguous()).clamp(
            max=len(weights) - 1
        )
        std = (stds[component].square() + sigma**2).sqrt()
        return means[component] + std[:, None] * torch.special.ndtri(uniform[:, 1:])

    def sample(self, number: int, seed: int = 0) -> Tensor:
        """Returns exact points (number, d) float64."""
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(number, 1 + self.dim, dtype=torch.float64, generator=generator)
        return self.points(uniform.clamp(min=1e-12))


@dataclasses.dataclass(frozen=True)
class Picture:
    """A point as an image of a row of d grey pixels, one for each coordinate: black is -`limit`, white `limit`."""

    limit: float

    def __call__(self, points: Tensor) -> Tensor:
        """Returns images (N, 1, 1, d) in [0, 1] of points (N, d)."""
        return (0.5 + points / (2 * self.limit)).clamp(0, 1)[:, None, None].float()

    def points(self, images: Tensor) -> Tensor:
        """Returns the points (N, d) float64 of images (N, 1, 1, d)."""
        return (2 * images.double().flatten(1) - 1) * self.limit


def picture(mixture: GaussianMixture) -> Picture:
    """Returns how points of a mixture become images, and images points."""
    return Picture(LIMIT * mixture.spread)


def _mixture(weights: list[float], means: list[list[float]], stds: list[float]) -> GaussianMixture:
    return GaussianMixture(*(torch.tensor(values, dtype=torch.float64) for values in (weights, means, stds)))


MIXTURES = {
    "normal": _mixture([1.0], [[0.0]], [1.0]),
    "mixture-1d": _mixture([0.3, 0.5, 0.2], [[-2.0], [0.5], [2.5]], [0.3, 0.6, 0.15]),
    "pair-1d": _mixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1]),
    "mixture-2d": _mixture(
        [0.4, 0.3, 0.2, 0.1], [[-1.5, -1.0], [1.5, -0.5], [0.0, 1.5], [2.5, 2.0]], [0.5, 0.3, 0.2, 0.4]
    ),
}
"""Name -> mixture; "normal" is ART's one-dimensional problem (arXiv 2601.18681, sec. 4.1)."""


def is_factory(name: str) -> bool:
    """Returns whether a backbone's name is "module:factory", whose module is imported, and not that of a folder."""
    return ":" in name and not Path(name).expanduser().is_dir()


def load_mixture(name: str) -> GaussianMixture:
    """Returns a mixture by its name, or what the function "module:factory" returns.

    Raises:
        ValueError: if there is none.
    """
    if name in MIXTURES:
        return MIXTURES[name]
    module, _, factory = name.partition(":")
    try:
        if not is_factory(name):
            raise AttributeError("no such name")
        mixture = getattr(importlib.import_module(module), factory)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(
            f"backbone must be {', '.join(map(repr, MIXTURES))} or 'module:factory', "
            f"a function that returns a GaussianMixture, got {name!r}: {error}"
        ) from None
    if not isinstance(mixture, GaussianMixture):
        raise ValueError(f"{name} must return a GaussianMixture, got {type(mixture).__name__}")
    return mixture
