"""The LlamaGen transformer: a class-conditional Llama over image tokens in raster order (Sun et al. 2024).

Parameter names and structure are those of the released checkpoints, so that the same class carries the digits
generator and the ImageNet ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genenv.models.kv_cache import KVCache
from genenv.models.raster import RasterTransformer, causal_mask, initialise, remember_in
from genenv.models.transformer import Remember, merge_heads, split_heads


def rotary_table(positions: Tensor, grid_size: int, head_dim: int) -> Tensor:
    """Returns the cosine and sine by which each channel pair is turned, (M, head_dim / 2, 2) float32.

    Su et al. 2021, eq. 34 in two dimensions: the first half of the pairs turns with the row of the token, the second
    with its column. The class token's row is 0, which blanks its query and key, as in the released models.

    Args:
        positions: (M,) int64 in the sequence; 0 is the class token, 1 + i the i-th image token.
        grid_size: side of the token grid.
        head_dim: channels of an attention head.
    """
    count = head_dim // 4
    frequency = 10000.0 ** (-torch.arange(count, device=positions.device) / count)
    place = positions[:, None] - 1
    angle = torch.cat([place // grid_size * frequency, place % grid_size * frequency], dim=1)
    table = torch.stack([angle.cos(), angle.sin()], dim=-1)
    return table * (positions > 0)[:, None, None]


def _turn(x: Tensor, table: Tensor) -> Tensor:
    """Returns x (R, heads, M, head_dim) with each pair of neighbouring channels turned by `table`."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table.unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions; `wqkv` is packed [q | k | v]."""

    def __init__(self, embed_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.wqkv = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.wo = nn.Linear(embed_dim, embed_dim, bias=False)

    def forward(self, x: Tensor, table: Tensor, mask: Tensor | None, remember: Remember | None) -> Tensor:
        """Returns (R, M, D) of x (R, M, D); see `RasterTransformer.read`."""
        q, k, v = split_heads(self.wqkv(x), self.num_heads)
        q, k = _turn(q, table), _turn(k, table)
        if remember is not None:
            k, v = remember(k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.wo(merge_heads(out))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, eq. 6): w2(silu(w1 x) * w3 x)."""

    def __init__(self, embed_dim: int, multiple_of: int):
        super().__init__()
        hidden = -(-(8 * embed_dim // 3) // multiple_of) * multiple_of
        self.w1 = nn.Linear(embed_dim, hidden, bias=False)
        self.w3 = nn.Linear(embed_dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, embed_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (R, M, D) of x (R, M, D)."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, embed_dim: int, num_heads: int, multiple_of: int, dropout: float):
        super().__init__()
        self.attention = Attention(embed_dim, num_heads)
        self.feed_forward = FeedForward(embed_dim, multiple_of)
        self.attention_norm = nn.RMSNorm(embed_dim, eps=1e-5)
        self.ffn_norm = nn.RMSNorm(embed_dim, eps=1e-5)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, table: Tensor, mask: Tensor | None, remember: Remember | None) -> Tensor:
        """Returns (R, M, D) of x (R, M, D); see `RasterTransformer.read`."""
        x = x + self.dropout(self.attention(self.attention_norm(x), table, mask, remember))
        return x + self.dropout(self.feed_forward(self.ffn_norm(x)))


class LlamaGenTransformer(RasterTransformer):
    """A Llama whose class token has a table of its own.

    Args:
        grid_size: side of the square token grid; L = grid_size ** 2.
        codebook_size: number of image tokens V.
        embed_dim: width D.
        depth: transformer blocks.
        num_heads: attention heads; the width of each is a multiple of 4.
        multiple_of: the feed-forward width is 8 D / 3 rounded up to a multiple of this.
        num_classes: class labels; id `num_classes` is the null (unconditional) class.
        dropout: rate during training; the frozen generator runs in eval mode.
    """

    def __init__(
        self,
        grid_size: int,
        codebook_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        multiple_of: int = 256,
        num_classes: int = 1000,
        dropout: float = 0.0,
    ):
        super().__init__(grid_size, codebook_size, embed_dim, depth, num_heads, num_classes)
        self.cls_embedding = nn.ModuleDict({"embedding_table": nn.Embedding(num_classes + 1, embed_dim)})
        self.tok_embeddings = nn.Embedding(codebook_size, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Block(embed_dim, num_heads, multiple_of, dropout) for _ in range(depth))
        self.norm = nn.RMSNorm(embed_dim, eps=1e-5)
        self.output = nn.Linear(embed_dim, codebook_size, bias=False)
        self.apply(initialise)
        self.register_load_state_dict_pre_hook(_forget_rotary_table)

    def hidden_states(
        self,
        tokens: Tensor,
        labels: Tensor | None,
        start: int = 0,
        cache: KVCache | None = None,
        rows: slice = slice(None),
    ) -> Tensor:
        """Returns the last hidden states (R, M, D) of the M entries read; see `RasterTransformer.read`."""
        x = self.tok_embeddings(tokens)
        if labels is not None:
            x = torch.cat([self.cls_embedding["embedding_table"](labels)[:, None], x], dim=1)
        x = self.dropout(x)
        positions = torch.arange(start, start + x.shape[1], device=x.device)
        table = rotary_table(positions, self.grid_size, self.embed_dim // self.num_heads)
        mask = causal_mask(start, x.shape[1], x.device)
        for i, layer in enumerate(self.layers):
            x = layer(x, table, mask, remember_in(cache, i, rows, start))
        return self.norm(x)

    def logits(self, features: Tensor) -> Tensor:
        """Returns the logits (..., V) of hidden states (..., D)."""
        return self.output(features)


def _forget_rotary_table(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Drops the table that some released files carry, which is no parameter."""
    state_dict.pop(f"{prefix}freqs_cis", None)


RELEASED = {
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1280, 36, 20),
    "XXL": (1536, 48, 24),
    "3B": (3200, 24, 32),
}
"""Released class-conditional model -> width, depth and heads (Sun et al. 2024, table 1)."""


def llamagen_imagenet(size: str, grid_size: int) -> LlamaGenTransformer:
    """Returns a released ImageNet generator: a size of `RELEASED`, and grid 16 (256 pixels) or 24 (384)."""
    embed_dim, depth, num_heads = RELEASED[size]
    return LlamaGenTransformer(grid_size, 16384, embed_dim, depth, num_heads)


def llamagen_digits(dropout: float = 0.0) -> LlamaGenTransformer:
    """Returns the 0.5 M parameter generator of 4x4 digit tokens."""
    return LlamaGenTransformer(
        grid_size=4,
        codebook_size=128,
        embed_dim=96,
        depth=4,
        num_heads=4,
        num_classes=10,
        dropout=dropout,
    )
