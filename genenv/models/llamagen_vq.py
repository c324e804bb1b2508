"""The VQ tokenizer of LlamaGen (Sun et al. 2024, sec. 2.1), under its released parameter names.

Levels are listed in the order in which they run, the decoder's deepest first. Codebook and latents are compared, and
decoded, at unit length (Yu et al. 2022, sec. 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genenv.models.convolutions import AttentionBlock, DownLevel, Level, ResidualBlock, UpLevel, VQAutoencoder


def _middle(width: int) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(width, width), AttentionBlock(width), ResidualBlock(width, width)])


class Encoder(nn.Module):
    """Images to latents; resolution halves between levels."""

    def __init__(self, ch: int, ch_mult: Sequence[int], num_blocks: int, z_channels: int):
        super().__init__()
        widths, last = [ch, *(ch * m for m in ch_mult)], len(ch_mult) - 1
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.conv_blocks = nn.ModuleList(
            (Level if i == last else DownLevel)(
                widths[i], widths[i + 1], num_blocks, AttentionBlock if i == last else None, name="res"
            )
            for i in range(len(ch_mult))
        )
        self.mid = _middle(widths[-1])
        self.norm_out = nn.GroupNorm(32, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, z_channels, h, w) of images (N, 3, H, W)."""
        x = self.conv_in(x)
        for block in [*self.conv_blocks, *self.mid]:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Latents to images; resolution doubles between levels."""

    def __init__(self, ch: int, ch_mult: Sequence[int], num_blocks: int, z_channels: int):
        super().__init__()
        deepest_first = [ch * m for m in reversed(ch_mult)]
        widths, last = [deepest_first[0], *deepest_first], len(ch_mult) - 1
        self.conv_in = nn.Conv2d(z_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0])
        self.conv_blocks = nn.ModuleList(
            (Level if i == last else UpLevel)(
                widths[i], widths[i + 1], num_blocks, AttentionBlock if i == 0 else None, name="res"
            )
            for i in range(len(ch_mult))
        )
        self.norm_out = nn.GroupNorm(32, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Returns unclamped images (N, 3, H, W) of latents (N, z_channels, h, w)."""
        x = self.conv_in(z)
        for block in [*self.mid, *self.conv_blocks]:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Codebook(nn.Module):
    """V entries, used at unit length."""

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        self.register_buffer("codebook_used", torch.zeros(65536))  # a statistic of the training

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the entries (N, D, h, w) of tokens (N, h, w)."""
        return F.normalize(self.embedding.weight, dim=-1)[tokens].permute(0, 3, 1, 2)

    def nearest(self, latents: Tensor) -> Tensor:
        """Returns the tokens (N, h, w) int64 of latents (N, D, h, w): at unit length, the largest dot product."""
        entries = F.normalize(self.embedding.weight, dim=-1)
        return (F.normalize(latents, dim=1).permute(0, 2, 3, 1) @ entries.T).argmax(-1)


class LlamaGenVQ(VQAutoencoder):
    """LlamaGen's autoencoder.

    Args:
        ch: channels of the first level.
        ch_mult: width of each level over `ch`; the grid is `downsampling` = 2 ** (levels - 1) times smaller than the
            image. Released are 16 with (1, 1, 2, 2, 4) and 8 with (1, 2, 2, 4).
        z_channels: channels between encoder and codebook.
        codebook_size: entries V.
        codebook_dim: dimension of an entry.
    """

    def __init__(
        self,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        z_channels: int = 256,
        codebook_size: int = 16384,
        codebook_dim: int = 8,
    ):
        super().__init__(
            Encoder(ch, ch_mult, 2, z_channels),
            Decoder(ch, ch_mult, 3, z_channels),
            Codebook(codebook_size, codebook_dim),
            z_channels,
            codebook_dim,
            2 ** (len(ch_mult) - 1),
        )
        self.codebook_size = codebook_size
