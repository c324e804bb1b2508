"""The LlamaGen transformer: a class-conditional Llama over image tokens in raster order (Sun et al. 2024).

Parameter names and structure are those of the released checkpoints, so that the same class carries the digits
generator and the ImageNet ones.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genenv.models.kv_cache import KVCache
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
        """Returns (R, M, D) of x (R, M, D); see `LlamaGenTransformer.read`."""
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
        """Returns (R, M, D) of x (R, M, D); see `LlamaGenTransformer.read`."""
        x = x + self.dropout(self.attention(self.attention_norm(x), table, mask, remember))
        return x + self.dropout(self.feed_forward(self.ffn_norm(x)))


class LlamaGenTransformer(nn.Module):
    """Predicts each token of a grid from its class and the tokens before it.

    The sequence is the class token followed by the image tokens in raster order; its entry j predicts token j.

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
        super().__init__()
        self.grid_size, self.codebook_size = grid_size, codebook_size
        self.num_classes, self.embed_dim, self.num_heads = num_classes, embed_dim, num_heads
        self.cls_embedding = nn.ModuleDict({"embedding_table": nn.Embedding(num_classes + 1, embed_dim)})
        self.tok_embeddings = nn.Embedding(codebook_size, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Block(embed_dim, num_heads, multiple_of, dropout) for _ in range(depth))
        self.norm = nn.RMSNorm(embed_dim, eps=1e-5)
        self.output = nn.Linear(embed_dim, codebook_size, bias=False)
        self.apply(_initialise)
        self.register_load_state_dict_pre_hook(_forget_rotary_table)

    def forward(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (N, 1 + M, V) and features (N, 1 + M, D) of one causal pass.

        Args:
            tokens: (N, M) int64, the first M tokens.
            labels: (N,) int64; `num_classes` for the unconditional prediction.
        """
        features = self._features(self._embed(tokens, labels), 0)
        return self.output(features), features

    def log_prob(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Returns the log-probability (N, L) of each token given those before it (teacher forcing), with gradients.

        Args:
            tokens: (N, L) int64 in raster order.
            labels: (N,) int64; `num_classes` for the unconditional one.
        """
        logits, _ = self(tokens[:, :-1], labels)
        return logits.float().log_softmax(-1).gather(-1, tokens[..., None])[..., 0]

    def read(
        self, tokens: Tensor, labels: Tensor | None, start: int, cache: KVCache, rows: slice
    ) -> tuple[Tensor, Tensor]:
        """Returns logits (R, V) and features (R, D) of the last of the entries read, from position `start` on.

        Args:
            tokens: (R, M) int64, the image tokens among the entries.
            labels: (R,) int64, the class token that opens the sequence, where `start` is 0; else None.
            start: how many entries the cache holds.
            cache: of the earlier entries; takes up these.
            rows: the cache's rows, R of them.
        """
        features = self._features(self._embed(tokens, labels), start, cache, rows)[:, -1]
        return self.output(features), features

    def new_cache(self, num_rows: int) -> KVCache:
        """Returns an empty cache for sequences without their last token, which predicts nothing."""
        weight = self.output.weight
        return KVCache(
            len(self.layers),
            num_rows,
            self.num_heads,
            self.grid_size**2,
            self.embed_dim // self.num_heads,
            device=weight.device,
            dtype=weight.dtype,
        )

    def _embed(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """Returns the entries' embeddings (R, M, D), the class token first where there is a label."""
        x = self.tok_embeddings(tokens)
        if labels is not None:
            x = torch.cat([self.cls_embedding["embedding_table"](labels)[:, None], x], dim=1)
        return self.dropout(x)

    def _features(
        self, x: Tensor, start: int, cache: KVCache | None = None, rows: slice = slice(None)
    ) -> Tensor:
        """Returns the last hidden states (R, M, D) of entries x (R, M, D) from position `start` on."""
        length = x.shape[1]
        positions = torch.arange(start, start + length, device=x.device)
        table = rotary_table(positions, self.grid_size, self.embed_dim // self.num_heads)
        mask = None  # a single new entry sees all
        if length > 1:
            mask = torch.ones(length, start + length, dtype=torch.bool, device=x.device).tril(start)
        for i, layer in enumerate(self.layers):
            remember = None if cache is None else functools.partial(cache.write, i, rows, start)
            x = layer(x, table, mask, remember)
        return self.norm(x)


def _forget_rotary_table(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Drops the table that some released files carry, which is no parameter."""
    state_dict.pop(f"{prefix}freqs_cis", None)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


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
