"""The FID of a batch as its reward, the control of AdaGen's ablation (arXiv 2603.06993)."""

from __future__ import annotations

import torch
from torch import Tensor

from genenv.metrics.frechet import symmetric_root
from genenv.protocols import Context
from genenv.rewards.features import FeatureExtractor, reward_features


class FIDReward:
    """Pays every image the negative Frechet distance of its group to the real images.

    A batch is cut into groups of consecutive images; all images of a group earn the same, so that only the
    difference between groups tells a policy anything, and a policy that draws every image's schedule anew has little
    to learn from it. The distance of few images is biased upwards, alike for all groups.

    Args:
        extractor: gives the features (N, D) of images.
        reference: mean (D,) and covariance (D, D) of the real features.
        group_size: images a group holds, at least 2; a rest is spread over the groups.
    """

    name = "fid"
    min_images = 2

    def __init__(self, extractor: FeatureExtractor, reference: tuple[Tensor, Tensor], group_size: int = 32):
        if group_size < 2:
            raise ValueError(f"group_size must be at least 2, got {group_size}")
        self.extractor, self.group_size = extractor, group_size
        self.mean, covariance = (r.double() for r in reference)
        self.std = covariance.diagonal().sqrt()
        self.root = symmetric_root(covariance / self.std[:, None] / self.std)

    @torch.no_grad()
    def __call__(self, images: Tensor, context: Context) -> Tensor:
        """Returns (N,), at most 0. Features are standardised, so a unit is a real std.

        Raises:
            ValueError: for a lone image.
        """
        n = len(images)
        if n < 2:
            raise ValueError(f"the reward 'fid' judges at least 2 images at once, got {n}; use gym.make_vec")
        features = (self.extractor.features(images).double() - self.mean) / self.std
        groups = features.tensor_split(max(1, n // self.group_size))
        return torch.cat([-self._distance(group).expand(len(group)) for group in groups]).float()

    def _distance(self, features: Tensor) -> Tensor:
        """Returns the Frechet distance of a group (n, D) from its centred features, without their covariance."""
        centre = features.mean(0)
        deviations = (features - centre) / (len(features) - 1) ** 0.5  # covariance = deviations^T deviations
        cross = torch.linalg.svdvals(deviations @ self.root).sum()
        return centre.square().sum() + deviations.square().sum() + len(centre) - 2 * cross


def make(backbone: str, device: str) -> FIDReward:
    """Returns the reward on the features of `genenv.rewards.features.reward_features`."""
    extractor, mean, covariance = reward_features(backbone, device)
    return FIDReward(extractor, (mean, covariance))
