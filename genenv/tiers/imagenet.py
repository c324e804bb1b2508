"""The tiers of the released ImageNet generators, at 256, 384 and 512 pixels."""

from __future__ import annotations

import functools
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn

from genenv.checkpoints import load_release
from genenv.metrics.inception import PROTOCOLS, InceptionExtractor
from genenv.models.projected_discriminator import ClassMapping, ProjectedDiscriminator
from genenv.releases import BACKBONES, DOWNLOADS, RELEASES
from genenv.rewards.clip import RELEASED_SCORERS
from genenv.rewards.features import inception_features
from genenv.tiers import RANDOM, FeatureExtractor, Tier

DINO = "dino-vit-s-16"
CLASS_NAMES = Path(str(files("genenv") / "assets" / "imagenet" / "class_names.txt"))
REFERENCES = {256: "adm-imagenet-256", 512: "adm-imagenet-512"}
"""Side of the judged images in pixels -> reference batch of ADM in `genenv.releases.DOWNLOADS`."""
JUDGED = {256: 256, 384: 256, 512: 512}
"""Side of the generated images -> of the judged ones. Images of 384 pixels are reduced to 256 first, as in LlamaGen's
evaluation."""


def discriminator(
    backbone: str, num_classes: int, generator: torch.Generator | None = None
) -> ProjectedDiscriminator:
    """Returns an untrained projected discriminator over DINO's ViT-S/16, random where the backbone is.

    Args:
        backbone: whose images it will see.
        num_classes: class labels.
        generator: draws the crops, on the CPU; None for torch's own.

    Raises:
        CheckpointError: if the transformer's weights are missing and cannot be downloaded, damaged, or others.
        ImportError: without timm.
    """
    return ProjectedDiscriminator(
        _dino(backbone.startswith(RANDOM)), ClassMapping(num_classes), generator=generator
    )


def _dino(random: bool) -> nn.Module:
    if not random:
        return load_release(DINO)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return RELEASES[DINO].build()


def _inception(protocol: str, pixels: int, backbone: str, device: torch.device) -> InceptionExtractor:
    return InceptionExtractor(pixels, DOWNLOADS[REFERENCES[pixels]], protocol, device)


def _features(pixels: int, backbone: str, device: str) -> tuple[FeatureExtractor, Tensor, Tensor]:
    return inception_features(pixels, DOWNLOADS[REFERENCES[pixels]], device)


def _tier(pixels: int) -> Tier:
    judged = JUDGED[pixels]
    return Tier(
        name=f"imagenet{pixels}",
        image_shape=(3, pixels, pixels),
        class_names=tuple(CLASS_NAMES.read_text(encoding="utf-8").splitlines()),
        released={name: parts for name, parts in BACKBONES.items() if name.startswith(f"imagenet{pixels}-")},
        prompt="a photo of a {}",
        judges={protocol: functools.partial(_inception, protocol, judged) for protocol in PROTOCOLS},
        reward_features=functools.partial(_features, judged),
        discriminator=discriminator,
        scorers=RELEASED_SCORERS,
    )


TIERS = tuple(_tier(pixels) for pixels in JUDGED)
