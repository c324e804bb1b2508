"""What the convolutional tokenizers of VQGAN, VAR, LlamaGen and MaskGIT share, under the released names."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

MakeBlock = Callable[[int, int], nn.Module]
"""Makes a residual block of input and output channels."""
MakeAttention = Callable[[int], nn.Module]
"""Makes an attention block of its channels."""


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions; where the width changes, the skip connection is a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, out_channels, h, w) of x (N, in_channels, h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class AttentionBlock(nn.Module):
    """Single-head self-attention over the places of a map."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, C, h, w) of x (N, C, h, w)."""
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))  # (N, h w, C)
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(out.transpose(1, 2).view_as(x))


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, padded on the right and at the bottom."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, channels, h / 2, w / 2) of x (N, channels, h, w)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Each place four times, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, channels, 2h, 2w) of x (N, channels, h, w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention where there is any.

    Args:
        in_channels, out_channels: widths.
        num_blocks: residual blocks.
        attention: None for none.
        block: the residual blocks' kind.
        name: under which the checkpoint keeps them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        attention: MakeAttention | None = None,
        block: MakeBlock = ResidualBlock,
        name: str = "block",
    ):
        super().__init__()
        widths = [in_channels] + [out_channels] * num_blocks
        self.name = name
        self.add_module(name, nn.ModuleList(block(a, b) for a, b in itertools.pairwise(widths)))
        self.attn = nn.ModuleList(
            [] if attention is None else [attention(out_channels) for _ in range(num_blocks)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, out_channels, h, w) of x (N, in_channels, h, w)."""
        blocks = self.get_submodule(self.name).children()
        for block, attention in itertools.zip_longest(blocks, self.attn):
            x = block(x)
            if attention is not None:
                x = attention(x)
        return x


class DownLevel(Level):
    """A level whose result is halved."""

    def __init__(self, in_channels: int, out_channels: int, *args: Any, **kwargs: Any):
        super().__init__(in_channels, out_channels, *args, **kwargs)
        self.downsample = Downsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, out_channels, h / 2, w / 2) of x (N, in_channels, h, w)."""
        return self.downsample(super().forward(x))


class UpLevel(Level):
    """A level whose result is enlarged."""

    def __init__(self, in_channels: int, out_channels: int, *args: Any, **kwargs: Any):
        super().__init__(in_channels, out_channels, *args, **kwargs)
        self.upsample = Upsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, out_channels, 2h, 2w) of x (N, in_channels, h, w)."""
        return self.upsample(super().forward(x))


def middle(
    width: int, block: MakeBlock = ResidualBlock, attention: MakeAttention | None = None
) -> nn.ModuleDict:
    """Returns the blocks between the levels, in the order in which they run, as VQGAN's checkpoints name them."""
    blocks = {"block_1": block(width, width)}
    if attention is not None:
        blocks["attn_1"] = attention(width)
    return nn.ModuleDict(blocks | {"block_2": block(width, width)})


class Encoder(nn.Module):
    """VQGAN's encoder, images to latents; resolution halves between levels.

    Args:
        widths: channels of each level, the last one of the latents' resolution; the first one is the input's too.
        num_blocks: residual blocks of each.
        z_channels: of the latents.
        attention: of the latents' resolution.
    """

    def __init__(self, widths: Sequence[int], num_blocks: int, z_channels: int, attention: MakeAttention):
        super().__init__()
        *outer, last = widths
        before = [widths[0], *outer]
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        levels: list[nn.Module] = [DownLevel(a, b, num_blocks) for a, b in zip(before, outer, strict=False)]
        self.down = nn.ModuleList([*levels, Level(before[-1], last, num_blocks, attention)])
        self.mid = middle(last, attention=attention)
        self.norm_out = nn.GroupNorm(32, last, eps=1e-6)
        self.conv_out = nn.Conv2d(last, z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, z_channels, h, w) of images (N, 3, H, W)."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        for block in self.mid.values():
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """VQGAN's decoder, latents to images; `up[-1]` runs first and `up[0]`, which does not enlarge, last.

    Args:
        widths: channels of each level, the last one of the latents' resolution.
        num_blocks: residual blocks of each.
        z_channels: of the latents.
        block: the residual blocks' kind.
        attention: of the latents' resolution, where there is any.
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_blocks: int,
        z_channels: int,
        block: MakeBlock = ResidualBlock,
        attention: MakeAttention | None = None,
    ):
        super().__init__()
        last = len(widths) - 1
        above = [*widths[1:], widths[-1]]
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = middle(widths[-1], block, attention)
        self.up = nn.ModuleList(
            (Level if i == 0 else UpLevel)(
                above[i], width, num_blocks, attention if i == last else None, block
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = nn.GroupNorm(32, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Returns unclamped images (N, 3, H, W) of latents (N, z_channels, h, w)."""
        x = self.conv_in(z)
        for block in [*self.mid.values(), *reversed(self.up)]:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class VQAutoencoder(nn.Module):
    """Images (N, 3, H, W) in [0, 1] to tokens and back, through pixels in [-1, 1].

    Args:
        encoder: images (N, 3, H, W) -> (N, z_channels, h, w).
        decoder: the way back, unclamped.
        quantize: a codebook: called, tokens (N, h, w) -> entries (N, D, h, w); `nearest` the other way.
        z_channels: channels between the convolutions and the codebook.
        codebook_dim: dimension D of an entry.
        downsampling: H / h.
    """

    image_channels = 3

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        quantize: nn.Module,
        z_channels: int,
        codebook_dim: int,
        downsampling: int,
    ):
        super().__init__()
        self.encoder, self.decoder, self.quantize = encoder, decoder, quantize
        self.quant_conv = nn.Conv2d(z_channels, codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(codebook_dim, z_channels, 1)
        self.downsampling = downsampling

    def latents(self, images: Tensor) -> Tensor:
        """Returns the encoder's output before quantisation (N, codebook_dim, h, w)."""
        return self.quant_conv(self.encoder(2 * images - 1))

    def encode(self, images: Tensor) -> Tensor:
        """Returns tokens (N, h, w) int64 of images (N, 3, H, W) in [0, 1]."""
        return self.quantize.nearest(self.latents(images))  # type: ignore[operator]

    def decode_unclamped(self, tokens: Tensor) -> Tensor:
        """Returns the decoder's output (N, 3, H, W), nominally in [-1, 1], for tokens (N, h, w)."""
        return self.decoder(self.post_quant_conv(self.quantize(tokens)))

    def decode(self, tokens: Tensor) -> Tensor:
        """Returns images (N, 3, H, W) in [0, 1] of tokens (N, h, w)."""
        return ((self.decode_unclamped(tokens) + 1) / 2).clamp(0, 1)
