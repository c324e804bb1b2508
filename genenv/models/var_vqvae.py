"""The multi-scale VQVAE of VAR (Tian et al. 2024, sec. 3.2), under its released parameter names.

Images become token maps of growing size: each scale quantises what the scales before it left over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genenv.models.convolutions import Decoder, Encoder
from genenv.models.var import PATCH_NUMS_256

TICKS = np.linspace(1 / 12, 11 / 12, 4)
"""Where between the first and the last scale each residual convolution stands."""


class MultiScaleQuantiser(nn.Module):
    """Latents (N, C, h, w) to the tokens of all scales, and back to their sum, the accumulated token map.

    Args:
        patch_nums: side of each scale's square token map, coarse to fine; the last one is that of the latents.
        vocab_size: codebook entries V.
        z_channels: dimension C of a codebook entry.
    """

    ema_vocab_hit_SV: Tensor

    def __init__(self, patch_nums: Sequence[int], vocab_size: int, z_channels: int):
        super().__init__()
        self.patch_nums = tuple(patch_nums)
        self.embedding = nn.Embedding(vocab_size, z_channels)
        convs = nn.ModuleList(nn.Conv2d(z_channels, z_channels, 3, padding=1) for _ in TICKS)
        self.quant_resi = nn.ModuleDict({"qresi_ls": convs})
        # Two of the 10 released scales lie half-way between ticks: float64 rounding decides, as it did in training.
        last = len(self.patch_nums) - 1
        self._conv_of_scale = [int(np.abs(TICKS - i / last).argmin()) for i in range(len(self.patch_nums))]
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(self.patch_nums), vocab_size))
        self.register_load_state_dict_pre_hook(_ignore_usage_of_other_scales)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        side = self.patch_nums[-1]
        return self.embedding.embedding_dim, side, side

    def nearest(self, vectors: Tensor) -> Tensor:
        """Returns the nearest codebook entries (...) int64 of vectors (..., C)."""
        codebook = self.embedding.weight
        distance = codebook.square().sum(1) - 2 * vectors @ codebook.T  # up to |vectors|^2
        return distance.argmin(-1)

    def shrink(self, latents: Tensor, scale: int) -> Tensor:
        """Returns latents (N, C, h, w) averaged to the size p of a scale, (N, p * p, C) row-major."""
        return F.interpolate(latents, size=self.patch_nums[scale], mode="area").flatten(2).transpose(1, 2)

    def expand(self, entries: Tensor, scale: int) -> Tensor:
        """Returns what the codebook entries (N, p * p, C) of a scale add to the latents, (N, C, h, w)."""
        side = self.patch_nums[scale]
        entries = entries.transpose(1, 2).unflatten(2, (side, side))
        entries = F.interpolate(entries, size=self.patch_nums[-1], mode="bicubic")
        conv = self.quant_resi["qresi_ls"][self._conv_of_scale[scale]]  # pyright: ignore[reportIndexIssue]
        return 0.5 * entries + 0.5 * conv(entries)

    def quantise(
        self, latents: Tensor, disturb: Callable[[Tensor], Tensor] = lambda tokens: tokens
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields each scale's tokens (N, p * p) and the accumulated map (N, C, h, w) (Tian et al. 2024, algorithm 1).

        Args:
            latents: (N, C, h, w).
            disturb: gives the tokens that are accumulated in place of a scale's own. The scales after it correct the
                difference, as they should the errors of a generator (Han et al. 2024, "Infinity", self-correction).
        """
        accumulated = torch.zeros_like(latents)
        for scale in range(len(self.patch_nums)):
            tokens = self.nearest(self.shrink(latents - accumulated, scale))
            accumulated = accumulated + self.expand(self.embedding(disturb(tokens)), scale)
            yield tokens, accumulated

    def encode(self, latents: Tensor) -> Tensor:
        """Returns the tokens of all scales (N, L) int64 of latents (N, C, h, w), coarse to fine."""
        return torch.cat([tokens for tokens, _ in self.quantise(latents)], dim=1)

    def accumulate(self, tokens: Tensor) -> Iterator[Tensor]:
        """Yields the accumulated map (N, C, h, w) after each scale of tokens (N, L) (algorithm 2)."""
        accumulated = torch.zeros((len(tokens), *self.latent_shape), device=tokens.device)
        for scale, part in enumerate(tokens.split([side**2 for side in self.patch_nums], dim=1)):
            accumulated = accumulated + self.expand(self.embedding(part), scale)
            yield accumulated

    def maps(self, accumulated: Iterable[Tensor]) -> Tensor:
        """Returns what the transformer reads, (N, L - p_0 * p_0, C): each map at the size of the scale after it.

        Args:
            accumulated: the accumulated map (N, C, h, w) after each scale.
        """
        before = list(accumulated)[:-1]
        return torch.cat([self.shrink(latents, i + 1) for i, latents in enumerate(before)], dim=1)


def _ignore_usage_of_other_scales(
    module: MultiScaleQuantiser, state_dict: dict[str, Tensor], prefix: str, *_
) -> None:
    """Forgets a file's usage counts, which no output depends on, where they are of other scales."""
    key, own = prefix + "ema_vocab_hit_SV", module.ema_vocab_hit_SV
    if key in state_dict and state_dict[key].shape != own.shape:
        state_dict[key] = state_dict[key].new_zeros(own.shape)


class AttentionBlock(nn.Module):
    """Self-attention with one head over the places of a feature map."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, channels, h, w) of x of the same shape."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)  # (N, h * w, channels)
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(out.transpose(1, 2).view_as(x))


class VARVQVAE(nn.Module):
    """Images (N, 3, H, W) in [0, 1] to the tokens of all scales and back.

    Args:
        patch_nums: side of each scale's token map; the image's side is 16 times the last.
        ch: channels of the first level.
        ch_mult: width of each level over `ch`.
        num_res_blocks: blocks of each level.
        z_channels: dimension C of a codebook entry.
        vocab_size: codebook entries V.
    """

    def __init__(
        self,
        patch_nums: Sequence[int] = PATCH_NUMS_256,
        ch: int = 160,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        z_channels: int = 32,
        vocab_size: int = 4096,
    ):
        super().__init__()
        side = patch_nums[-1] * 2 ** (len(ch_mult) - 1)
        self.image_shape = (3, side, side)
        widths = [ch * m for m in ch_mult]
        self.encoder = Encoder(widths, num_res_blocks, z_channels, AttentionBlock)
        self.decoder = Decoder(widths, num_res_blocks + 1, z_channels, attention=AttentionBlock)
        self.quantize = MultiScaleQuantiser(patch_nums, vocab_size, z_channels)
        self.quant_conv = nn.Conv2d(z_channels, z_channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(z_channels, z_channels, 3, padding=1)

    def latents(self, images: Tensor) -> Tensor:
        """Returns the latents before quantisation (N, C, h, w) of images in [0, 1]."""
        return self.quant_conv(self.encoder(2 * images - 1))

    def encode(self, images: Tensor) -> Tensor:
        """Returns the tokens of all scales (N, L) int64, coarse to fine, of images in [0, 1]."""
        return self.quantize.encode(self.latents(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Returns images (N, 3, H, W) in [0, 1] of an accumulated token map (N, C, h, w)."""
        return ((self.decoder(self.post_quant_conv(latents)) + 1) / 2).clamp(0, 1)
