"""The transformer of VQGAN: a class-conditional GPT over image tokens in raster order (Esser et al. 2021, sec. 3.2).

Parameter names and structure are those of minGPT in the released checkpoints, so that the same class carries the digits
generator and the ImageNet one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genenv.models.kv_cache import KVCache
from genenv.models.raster import RasterTransformer, causal_mask, initialise, remember_in
from genenv.models.transformer import Remember, merge_heads


class Attention(nn.Module):
    """Multi-head self-attention with a layer each for keys, queries and values."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.key = nn.Linear(embed_dim, embed_dim)
        self.query = nn.Linear(embed_dim, embed_dim)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.register_load_state_dict_pre_hook(_forget_mask)

    def forward(self, x: Tensor, mask: Tensor | None, remember: Remember | None) -> Tensor:
        """Returns (R, M, D) of x (R, M, D); see `RasterTransformer.read`."""
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        if remember is not None:
            k, v = remember(k, v)
        rate = self.dropout if self.training else 0.0
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)))


def _forget_mask(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Drops the causal mask that released files carry, which is no parameter."""
    state_dict.pop(f"{prefix}mask", None)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.attn = Attention(embed_dim, num_heads, dropout)
        self.dropout = nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            nn.Linear(embed_dim, 4 * embed_dim), nn.GELU(), nn.Linear(4 * embed_dim, embed_dim)
        )

    def forward(self, x: Tensor, mask: Tensor | None, remember: Remember | None) -> Tensor:
        """Returns (R, M, D) of x (R, M, D); see `RasterTransformer.read`."""
        x = x + self.dropout(self.attn(self.ln1(x), mask, remember))
        return x + self.dropout(self.mlp(self.ln2(x)))


class VQGANTransformer(RasterTransformer):
    """A GPT with learnt positions, whose class labels are entries of the image tokens' own table.

    Label c and image token c are one embedding; the position, 0 for the class alone, tells them apart. The released
    class-conditional network was trained without a null class, and there can be no guidance.

    Args:
        grid_size: side of the square token grid; L = grid_size ** 2.
        codebook_size: number of image tokens V.
        embed_dim: width D.
        depth: transformer blocks.
        num_heads: attention heads.
        num_classes: class labels C.
        null_class: whether label C is that of no class.
        dropout: rate during training; the frozen generator runs in eval mode.

    Raises:
        ValueError: if the table has fewer entries than there are labels.
    """

    def __init__(
        self,
        grid_size: int,
        codebook_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        num_classes: int = 1000,
        null_class: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__(grid_size, codebook_size, embed_dim, depth, num_heads, num_classes, null_class)
        if num_classes + null_class > codebook_size:
            raise ValueError(
                f"num_classes and the null class must fit the token table of codebook_size={codebook_size}, "
                f"got {num_classes + null_class} labels"
            )
        self.tok_emb = nn.Embedding(codebook_size, embed_dim)
        self.pos_emb = nn.Parameter(torch.zeros(1, grid_size**2, embed_dim))
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, dropout) for _ in range(depth))
        self.ln_f = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, codebook_size, bias=False)
        self.apply(initialise)

    def hidden_states(
        self,
        tokens: Tensor,
        labels: Tensor | None,
        start: int = 0,
        cache: KVCache | None = None,
        rows: slice = slice(None),
    ) -> Tensor:
        """Returns the last hidden states (R, M, D) of the M entries read; see `RasterTransformer.read`."""
        entries = tokens if labels is None else torch.cat([labels[:, None], tokens], dim=1)
        length = entries.shape[1]
        x = self.drop(self.tok_emb(entries) + self.pos_emb[:, start : start + length])
        mask = causal_mask(start, length, x.device)
        for i, block in enumerate(self.blocks):
            x = block(x, mask, remember_in(cache, i, rows, start))
        return self.ln_f(x)

    def logits(self, features: Tensor) -> Tensor:
        """Returns the logits (..., V) of hidden states (..., D)."""
        return self.head(features)


def vqgan_imagenet() -> VQGANTransformer:
    """Returns the released ImageNet generator of 1.4 B parameters, at 256 pixels and without a null class."""
    return VQGANTransformer(16, 16384, embed_dim=1536, depth=48, num_heads=24, null_class=False)


def vqgan_digits(dropout: float = 0.0) -> VQGANTransformer:
    """Returns the 0.5 M parameter generator of 4x4 digit tokens."""
    return VQGANTransformer(
        grid_size=4,
        codebook_size=128,
        embed_dim=96,
        depth=4,
        num_heads=4,
        num_classes=10,
        dropout=dropout,
    )
