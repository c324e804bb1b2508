"""The Inception-v3 network of FID on ImageNet, and what real images look like to it."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genenv.checkpoints import CheckpointError, check_recorded, locate, locate_published, read_state_dict
from genenv.metrics.fid import read_adm_images, read_adm_moments
from genenv.releases import DOWNLOADS, Download
from genenv.tiers import Reference

PROTOCOLS = ("torch-fidelity", "adagen")
"""How images become features, the default first; numbers of different protocols cannot be compared.

"torch-fidelity": pixels rounded to uint8, TensorFlow's resizing, statistics in float64. "adagen": unrounded pixels,
torch's bilinear resizing, statistics in float32, as in AdaGen's evaluation code with the torch-fidelity that AdaNAT's
code brings along."""

WEIGHTS = "inception-fid"
"""Of `genenv.releases.DOWNLOADS`."""
REAL_IMAGES = 10_000
"""Real images, at most, whose features are compared with the generated ones."""
CHUNK = 64
"""Images that go through the network at once."""


class InceptionExtractor:
    """Features and logits of torch-fidelity's Inception-v3, with its weights.

    Nothing of the weights is unpickled but tensors, and those only after their hash is known to be right.

    Args:
        pixels: side of the judged images; others are resized to it first.
        reference: reference batch of ADM.
        protocol: one of `PROTOCOLS`.
        device: where the network runs.

    Raises:
        CheckpointError: if a file is missing, damaged or another one.
    """

    labelled = False
    """The 1,008 logits are not in the order of ImageNet's labels: no accuracy."""
    num_classes = 1008

    def __init__(self, pixels: int, reference: Download, protocol: str, device: torch.device | str = "cpu"):
        self.pixels, self.protocol, self.device = pixels, protocol, torch.device(device)
        self.dtype = torch.float32 if protocol == "adagen" else torch.float64
        path, self.sha256 = locate_published(DOWNLOADS[WEIGHTS])
        self.path = locate(reference)
        digest, record = check_recorded(self.path)
        mean, covariance = read_adm_moments(self.path)
        record()
        self.reference = Reference(mean, covariance, digest)
        network = _build(path)
        *layers, head = network.to(self.device).children()  # in the order in which they are applied
        self.body, self.head = nn.Sequential(*layers), head.get_parameter("weight")

    @functools.cached_property
    def real(self) -> Tensor | None:
        """Features (N, 2048) of the reference's images, None where its file has none."""
        images = read_adm_images(self.path, REAL_IMAGES)
        if images is None:
            return None
        chunks = images.permute(0, 3, 1, 2).split(CHUNK)
        return torch.cat([self(chunk.to(self.device).float() / 255)[0] for chunk in chunks])

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features (N, 2048) and logits without bias (N, 1008) of images (N, 3, H, W) in [0, 1]."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"Inception takes images (N, 3, H, W), got {tuple(images.shape)}")
        features = torch.cat([self.body(self._pixels(chunk)).flatten(1) for chunk in images.split(CHUNK)])
        return features, features @ self.head.T

    def _pixels(self, images: Tensor) -> Tensor:
        """Returns the network's input (N, 3, 299, 299) in [-1, 1]."""
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        images = images.to(self.device).float()
        if images.shape[-1] != self.pixels:
            images = F.interpolate(images, size=(self.pixels, self.pixels), mode="bicubic")
        if self.protocol == "adagen":
            images = F.interpolate(images.clamp(0, 1), size=(299, 299), mode="bilinear", align_corners=False)
            return 2 * images - 1
        images = (255 * images + 0.5).floor().clamp(0, 255)
        images = interpolate_bilinear_2d_like_tensorflow1x(images, size=(299, 299), align_corners=False)
        return (images - 128) / 128


def _build(path: Path) -> nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # The library unpickles whatever its file holds, so it is given a pickle made here, of the tensors alone.
    buffer = io.BytesIO()
    torch.save(read_state_dict(path), buffer)
    buffer.seek(0)
    try:
        with torch.random.fork_rng(devices=[]):
            return FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], buffer)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit Inception-v3: {error}") from None
