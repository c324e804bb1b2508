"""The VQGAN tokenizer that MAGE converted from MaskGIT (Chang et al. 2022), under its released parameter names.

It differs from taming's VQGAN: no attention, few biases, average pooling, a shortcut on the processed branch, and
pixels in [0, 1].
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from genenv.models.convolutions import Decoder, Level, middle


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions; where the width changes, the shortcut is taken of their result."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(32, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(out_channels, out_channels, 1, bias=False)
        else:
            self.nin_shortcut = None

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, out_channels, h, w) of x (N, in_channels, h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(h))


class Encoder(nn.Module):
    """Images to latents; resolution halves between levels."""

    def __init__(self, ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int):
        super().__init__()
        widths = [ch, *(ch * m for m in ch_mult)]
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            Level(a, b, num_res_blocks, block=ResidualBlock) for a, b in itertools.pairwise(widths)
        )
        self.mid = middle(widths[-1], ResidualBlock)
        self.norm_out = nn.GroupNorm(32, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, z_channels, h, w) of images (N, 3, H, W)."""
        x = self.conv_in(x)
        for i, level in enumerate(self.down):
            x = level(x if i == 0 else F.avg_pool2d(x, 2))
        for block in self.mid.values():
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Codebook(nn.Module):
    """V entries of dimension D."""

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(size, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the entries (N, D, h, w) of tokens (N, h, w)."""
        return self.embedding(tokens).permute(0, 3, 1, 2)

    def nearest(self, latents: Tensor) -> Tensor:
        """Returns the tokens (N, h, w) int64 of latents (N, D, h, w): the nearest entries."""
        entries = self.embedding.weight
        distance = entries.square().sum(1) - 2 * latents.permute(0, 2, 3, 1) @ entries.T  # up to |latents|^2
        return distance.argmin(-1)


class MaskGITVQGAN(nn.Module):
    """Images (N, 3, H, W) in [0, 1] to tokens and back.

    Args:
        ch: channels of the first level.
        ch_mult: width of each level over `ch`; the grid is 2 ** (levels - 1) times smaller than the image.
        num_res_blocks: blocks of each level.
        z_channels: dimension of a codebook entry.
        n_embed: codebook entries V.
    """

    image_channels = 3

    def __init__(
        self,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        z_channels: int = 256,
        n_embed: int = 1024,
    ):
        super().__init__()
        self.downsampling = 2 ** (len(ch_mult) - 1)
        self.encoder = Encoder(ch, ch_mult, num_res_blocks, z_channels)
        self.decoder = Decoder([ch * m for m in ch_mult], num_res_blocks, z_channels, ResidualBlock)
        self.quantize = Codebook(n_embed, z_channels)

    def encode(self, images: Tensor) -> Tensor:
        """Returns tokens (N, h, w) int64: the nearest codebook entries."""
        return self.quantize.nearest(self.encoder(images))

    def decode_unclamped(self, tokens: Tensor) -> Tensor:
        """Returns the decoder's output (N, 3, H, W) for tokens (N, h, w)."""
        return self.decoder(self.quantize(tokens))

    def decode(self, tokens: Tensor) -> Tensor:
        """Returns images (N, 3, H, W) in [0, 1] of tokens (N, h, w)."""
        return self.decode_unclamped(tokens).clamp(0, 1)
