"""The Frechet distance of two Gaussians (Heusel et al. 2017, eq. 6)."""

from __future__ import annotations

import torch
from torch import Tensor


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean (D,) and unbiased covariance (D, D) of features (N, D), float64."""
    features = features.double()
    return features.mean(0), torch.atleast_2d(torch.cov(features.T))


class Moments:
    """Mean and unbiased covariance of features that come batch by batch; its size does not depend on how many.

    Batches are merged by the update of Chan, Golub and LeVeque 1983 (eq. 2.1), which loses no digits where the mean is
    far from zero.

    Args:
        dim: D.
        dtype: of the sums.
        device: where they are kept.

    Attributes:
        count: features so far.
        mean: (D,).
        scatter: (D, D), the sum of the products of the deviations from the mean.
    """

    def __init__(
        self, dim: int, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ):
        self.count = 0
        self.mean = torch.zeros(dim, dtype=dtype, device=device)
        self.scatter = torch.zeros(dim, dim, dtype=dtype, device=device)

    def update(self, features: Tensor) -> None:
        """Adds features (N, D)."""
        if not len(features):
            return
        features = features.to(self.mean)
        batch = Moments(len(self.mean), self.mean.dtype, self.mean.device)
        batch.count, batch.mean = len(features), features.mean(0)
        deviations = features - batch.mean
        batch.scatter = deviations.T @ deviations
        self.merge(batch)

    def merge(self, other: Moments) -> None:
        """Adds the features that other moments, of the same dtype and device, have seen."""
        count = self.count + other.count
        if not other.count:
            return
        step = other.mean - self.mean
        self.mean = self.mean + step * (other.count / count)
        between = step[:, None] * step * (self.count * other.count / count)
        self.scatter = self.scatter + other.scatter + between
        self.count = count

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance (D, D), of at least two features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 features, got {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Returns |mean1 - mean2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)).

    The trace of the root is the sum of the singular values of root(cov1) root(cov2), which stays real for singular
    covariances too.
    """
    mean1, cov1, mean2, cov2 = (x.double() for x in (mean1, cov1, mean2, cov2))
    cross = torch.linalg.svdvals(symmetric_root(cov1) @ symmetric_root(cov2)).sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross
    return distance.item()


def symmetric_root(covariance: Tensor) -> Tensor:
    """Returns the symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
