"""The tiers of mixtures of Gaussians: an image is a point."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from genenv.metrics.points import REAL_POINTS, PointExtractor
from genenv.models.gaussian_mixture import MIXTURES, is_factory, load_mixture, picture
from genenv.tiers import RANDOM, FeatureExtractor, Labelled, Tier


def _real(name: str) -> Labelled:
    mixture = load_mixture(name)
    return picture(mixture)(mixture.sample(REAL_POINTS)), torch.zeros(REAL_POINTS, dtype=torch.int64)


def _features(backbone: str, device: str) -> tuple[FeatureExtractor, Tensor, Tensor]:
    extractor = PointExtractor(backbone, device)
    reference = extractor.reference
    return extractor, reference.mean.to(device), reference.covariance.to(device)


@functools.cache
def _tier(name: str) -> Tier:
    return Tier(
        name=name,
        image_shape=(1, 1, load_mixture(name).dim),
        class_names=("point",),
        released={name: {}},
        real_images=functools.partial(_real, name),
        judges={PointExtractor.protocol: PointExtractor},
        reward_features=_features,
        default_reward="loo_fid",
    )


def recognise(backbone: str) -> Tier | None:
    """Returns the tier of the user's own mixture, "module:factory"; None where a name is not of this kind."""
    if not is_factory(backbone) or backbone.startswith(RANDOM):
        return None
    return _tier(backbone)


TIERS = tuple(_tier(name) for name in MIXTURES)
