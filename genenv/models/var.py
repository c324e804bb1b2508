"""The VAR transformer: predicts a token map scale by scale, coarse to fine (Tian et al. 2024).

Parameter names and structure are those of the released checkpoints, so that the same class carries the digits
generator and the ImageNet ones.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genenv.models.kv_cache import KVCache
from genenv.models.transformer import MLP, Remember, merge_heads, split_heads

PATCH_NUMS_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
PATCH_NUMS_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
"""Sides of the token maps of the released models, by the image's side."""

MAX_LOG_SCALE = math.log(100)


class Attention(nn.Module):
    """Cosine attention: queries and keys are unit vectors, each head has its own temperature (sec. 4.1)."""

    zero_k_bias: Tensor

    def __init__(self, embed_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, num_heads, 1, 1), math.log(4)))
        self.q_bias = nn.Parameter(torch.zeros(embed_dim))
        self.v_bias = nn.Parameter(torch.zeros(embed_dim))
        self.register_buffer("zero_k_bias", torch.zeros(embed_dim))
        self.mat_qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, mask: Tensor | None, remember: Remember | None) -> Tensor:
        """Returns (N, M, D) of x (N, M, D), which attends to what `remember` returns, or to itself."""
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        q, k, v = split_heads(F.linear(x, self.mat_qkv.weight, bias), self.num_heads)
        q = F.normalize(q, dim=-1) * self.scale_mul_1H11.clamp(max=MAX_LOG_SCALE).exp()
        k = F.normalize(k, dim=-1)
        if remember is not None:
            k, v = remember(k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        return self.proj(merge_heads(out))


class Block(nn.Module):
    """A transformer block whose norms and branches the class modulates (adaptive LayerNorm).

    With `shared_aln` all blocks share one modulation and add an offset of their own to it.
    """

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: float, shared_aln: bool, dropout: float):
        super().__init__()
        self.shared_aln = shared_aln
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(embed_dim, num_heads)
        self.ffn = MLP(embed_dim, int(embed_dim * mlp_ratio), approximate="tanh")
        self.dropout = nn.Dropout(dropout)
        if shared_aln:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, embed_dim) / embed_dim**0.5)
        else:
            self.ada_lin = _modulation(embed_dim, 6)

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor | None, remember: Remember | None) -> Tensor:
        """Returns (N, M, D) of x (N, M, D).

        Args:
            x: the activations.
            condition: the class embedding (N, D), or with `shared_aln` the shared modulation (N, 6 D).
            mask: what each position adds to its attention logits; None where it sees everything.
            remember: the cache of this layer.
        """
        if self.shared_aln:
            modulation = self.ada_gss + condition.view(len(x), 1, 6, -1)
        else:
            modulation = self.ada_lin(condition).view(len(x), 1, 6, -1)
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unbind(2)
        attended = self.attn(self.norm(x) * (1 + scale1) + shift1, mask, remember)
        x = x + self.dropout(attended) * gate1
        return x + self.dropout(self.ffn(self.norm(x) * (1 + scale2) + shift2)) * gate2


class HeadNorm(nn.Module):
    """The class-modulated LayerNorm before the head."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6, elementwise_affine=False)
        self.ada_lin = _modulation(embed_dim, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Returns (N, M, D) of x (N, M, D) and the class embedding (N, D)."""
        scale, shift = self.ada_lin(condition).view(len(x), 1, 2, -1).unbind(2)
        return self.norm(x) * (1 + scale) + shift


class VARTransformer(nn.Module):
    """Predicts the token map of every scale from the class and the scales before it.

    Args:
        patch_nums: side of each scale's square token map, coarse to fine; L is the sum of their squares.
        vocab_size: codebook entries V.
        z_channels: dimension C of a codebook entry.
        embed_dim: width D.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over D.
        num_classes: class labels; id `num_classes` is the null (unconditional) class.
        shared_aln: share the blocks' modulation, as the 512-pixel model does.
        dropout: rate during training; the frozen generator runs in eval mode.
    """

    lvl_1L: Tensor
    attn_bias_for_masking: Tensor

    def __init__(
        self,
        patch_nums: Sequence[int],
        vocab_size: int,
        z_channels: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        shared_aln: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.patch_nums, self.vocab_size = tuple(patch_nums), vocab_size
        self.num_classes, self.embed_dim, self.num_heads = num_classes, embed_dim, num_heads
        self.offsets = (0, *itertools.accumulate(side**2 for side in patch_nums))
        """Where each scale begins in the sequence, and its length L."""
        length = self.offsets[-1]
        self.pos_start = nn.Parameter(torch.zeros(1, self.offsets[1], embed_dim))
        self.pos_1LC = nn.Parameter(torch.zeros(1, length, embed_dim))
        level = torch.cat([torch.full((1, side**2), i) for i, side in enumerate(patch_nums)], dim=1)  # (1, L)
        self.register_buffer("lvl_1L", level)
        later = level[:, None, :, None] < level[:, None, None, :]
        self.register_buffer("attn_bias_for_masking", torch.where(later, -math.inf, 0.0))  # (1, 1, L, L)
        self.word_embed = nn.Linear(z_channels, embed_dim)
        self.class_emb = nn.Embedding(num_classes + 1, embed_dim)
        self.lvl_embed = nn.Embedding(len(self.patch_nums), embed_dim)
        self.shared_ada_lin = _modulation(embed_dim, 6) if shared_aln else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, shared_aln, dropout) for _ in range(depth)
        )
        self.head_nm = HeadNorm(embed_dim)
        self.head = nn.Linear(embed_dim, vocab_size)
        self._initialise()

    def forward(
        self,
        maps: Tensor,
        labels: Tensor,
        first_scale: int = 0,
        cache: KVCache | None = None,
        rows: slice = slice(None),
    ) -> tuple[Tensor, Tensor]:
        """Returns logits (N, M, V) and hidden states (N, M, D), the last block's, of whole scales from one on.

        A position sees its own scale and those before it: all that is read now and what the cache holds.

        Args:
            maps: (N, M, C) the accumulated token map before each scale, at the size of that scale, row-major. Scale
                0 has none: it begins with the class, so that M counts its positions but `maps` does not.
            labels: (N,) int64; `num_classes` for the unconditional prediction.
            first_scale: the first scale that is read; those before it must be in the cache.
            cache: remembers the scales that are read; None to forget them.
            rows: which rows of the cache the N sequences are.
        """
        condition = self.class_emb(labels)  # (N, D)
        x = self.word_embed(maps.to(condition.dtype))
        if first_scale == 0:
            x = torch.cat([condition[:, None] + self.pos_start, x], dim=1)
        start = self.offsets[first_scale]
        end = start + x.shape[1]
        x = x + self.lvl_embed(self.lvl_1L[:, start:end]) + self.pos_1LC[:, start:end]  # (N, M, D)
        several = end > self.offsets[first_scale + 1]
        mask = self.attn_bias_for_masking[:, :, start:end, :end] if several else None
        modulation = self.shared_ada_lin(condition)
        for layer, block in enumerate(self.blocks):
            remember = None if cache is None else functools.partial(cache.write, layer, rows, start)
            x = block(x, modulation, mask, remember)
        return self.head(self.head_nm(x, condition)), x

    def log_prob(self, tokens: Tensor, maps: Tensor, labels: Tensor) -> Tensor:
        """Returns the log-probability (N, M) of each token given the scales before it (teacher forcing).

        Args:
            tokens: (N, M) int64 of all scales, coarse to fine.
            maps: (N, M - 1, C), as of `forward`: `quantize.maps(quantize.accumulate(tokens))` of the tokenizer.
            labels: (N,) int64; `num_classes` for the unconditional one.
        """
        logits, _ = self(maps, labels)
        return logits.float().log_softmax(-1).gather(-1, tokens[..., None])[..., 0]

    def new_cache(self, num_rows: int) -> KVCache:
        """Returns an empty cache for sequences of all scales."""
        return KVCache(
            len(self.blocks),
            num_rows,
            self.num_heads,
            self.offsets[-1],
            self.embed_dim // self.num_heads,
            device=self.pos_start.device,
            dtype=self.pos_start.dtype,
        )

    def _initialise(self) -> None:
        std = (3 * self.embed_dim) ** -0.5
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_start, std=std)
        nn.init.trunc_normal_(self.pos_1LC, std=std)


def _modulation(embed_dim: int, count: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(embed_dim, count * embed_dim))


def var_d(depth: int) -> VARTransformer:
    """Returns the released ImageNet model of a depth: 16, 20, 24, 30 at 256 pixels, 36 at 512."""
    large = depth == 36
    return VARTransformer(
        PATCH_NUMS_512 if large else PATCH_NUMS_256,
        vocab_size=4096,
        z_channels=32,
        embed_dim=64 * depth,
        depth=depth,
        num_heads=depth,
        shared_aln=large,
    )


def var_digits(dropout: float = 0.0) -> VARTransformer:
    """Returns the 0.5 M parameter generator of the digits' token maps of 1, 2, 3 and 4 a side."""
    return VARTransformer(
        (1, 2, 3, 4),
        vocab_size=128,
        z_channels=16,
        embed_dim=96,
        depth=4,
        num_heads=4,
        num_classes=10,
        shared_aln=True,
        dropout=dropout,
    )
