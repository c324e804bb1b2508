"""The VQ tokenizer of the digits tier: 8x8 grey images <-> 4x4 tokens (van den Oord et al. 2017)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with GELU and a skip connection."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, width, h, w) of x of the same shape."""
        return x + self.conv2(F.gelu(self.conv1(F.gelu(x))))


class DigitsVQ(nn.Module):
    """Encodes images to codebook indices and back.

    Args:
        width: channels of the convolutions.
        code_dim: dimension of a codebook entry.
        codebook_size: number of entries V.
    """

    codebook: Tensor
    image_channels = 1
    downsampling = 2

    def __init__(self, width: int = 32, code_dim: int = 16, codebook_size: int = 128):
        super().__init__()
        self.codebook_size = codebook_size
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            ResidualBlock(width),
            nn.GELU(),
            nn.Conv2d(width, width, 4, stride=2, padding=1),  # 8x8 -> 4x4
            ResidualBlock(width),
            nn.Conv2d(width, code_dim, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(code_dim, width, 3, padding=1),
            ResidualBlock(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),  # 4x4 -> 8x8
            ResidualBlock(width),
            nn.GELU(),
            nn.Conv2d(width, 1, 3, padding=1),
        )
        self.register_buffer("codebook", torch.randn(codebook_size, code_dim))

    def nearest(self, latents: Tensor) -> Tensor:
        """Returns the index of the nearest codebook entry, (..., code_dim) -> (...) int64."""
        flat = latents.reshape(-1, latents.shape[-1])
        return torch.cdist(flat, self.codebook).argmin(1).view(latents.shape[:-1])

    def latents(self, images: Tensor) -> Tensor:
        """Returns the encoder's output before quantisation, (N, 1, 8, 8) in [0, 1] -> (N, 4, 4, code_dim)."""
        return self.encoder(2 * images - 1).permute(0, 2, 3, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Returns tokens (N, 4, 4) int64 of images (N, 1, 8, 8) in [0, 1]."""
        return self.nearest(self.latents(images))

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Returns unclamped images (N, 1, 8, 8) of quantised latents (N, 4, 4, code_dim)."""
        return (self.decoder(latents.permute(0, 3, 1, 2)) + 1) / 2

    def decode(self, tokens: Tensor) -> Tensor:
        """Returns images (N, 1, 8, 8) in [0, 1] of tokens (N, 4, 4)."""
        return self.decode_latents(self.codebook[tokens]).clamp(0, 1)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Returns images (N, 1, 8, 8) as their tokens give them back."""
        return self.decode(self.encode(images))
