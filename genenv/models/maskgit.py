"""The MaskGIT transformer: a bidirectional U-ViT over a token grid (Bao et al. 2023; AdaGen's MaskGIT-L).

Parameter names and structure are those of the released checkpoints, so that the same class carries the digits
generator and the ImageNet one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genenv.models.transformer import MLP, Attention


class TokenEmbedding(nn.Module):
    """LayerNorm of word plus position embedding, (N, L) -> (N, L, D)."""

    def __init__(self, vocabulary: int, length: int, embed_dim: int, dropout: float):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, embed_dim)
        self.position_embeddings = nn.Embedding(length, embed_dim)
        self.LayerNorm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """Returns (N, L, D) of ids (N, L)."""
        return self.dropout(
            self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings.weight[: ids.shape[1]])
        )


class Block(nn.Module):
    """A pre-norm transformer block; an out-block first merges the long skip connection."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: float, dropout: float, skip: bool = False):
        super().__init__()
        self.skip_linear = nn.Linear(2 * embed_dim, embed_dim) if skip else None
        self.norm1 = nn.LayerNorm(embed_dim)
        self.attn = Attention(embed_dim, num_heads, qkv_bias=False)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = MLP(embed_dim, int(embed_dim * mlp_ratio), approximate="none")
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Returns (N, L, D) of x (N, L, D) and, in an out-block, the skipped activations of the same shape."""
        if self.skip_linear is not None and skip is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + self.dropout(self.attn(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class PredictionHead(nn.Module):
    """Scores every vocabulary entry against the (tied) word embeddings."""

    def __init__(self, embed_dim: int, vocabulary: int):
        super().__init__()
        self.fc = nn.Linear(embed_dim, embed_dim)
        self.ln = nn.LayerNorm(embed_dim)
        self.bias = nn.Parameter(torch.zeros(1, 1, vocabulary))

    def forward(self, x: Tensor, word_embeddings: Tensor) -> Tensor:
        """Returns logits (N, L, V + 1) of x (N, L, D) with word embeddings (V + 1, D)."""
        return self.ln(F.gelu(self.fc(x))) @ word_embeddings.T + self.bias


class MaskGITTransformer(nn.Module):
    """Predicts every token of a partly masked grid given its class.

    Args:
        grid_size: side of the square token grid; L = grid_size ** 2.
        codebook_size: number of image tokens V; id V is the mask token.
        embed_dim: width D.
        depth: `depth // 2` in-blocks, one middle block, `depth // 2` out-blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over D.
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
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.grid_size, self.codebook_size = grid_size, codebook_size
        self.num_classes, self.embed_dim = num_classes, embed_dim
        vocabulary = codebook_size + 1
        self.token_emb = TokenEmbedding(vocabulary, grid_size**2, embed_dim, dropout)
        self.context_embed = TokenEmbedding(num_classes + 1, 1, embed_dim, dropout)
        arguments = (embed_dim, num_heads, mlp_ratio, dropout)
        self.in_blocks = nn.ModuleList(Block(*arguments) for _ in range(depth // 2))
        self.mid_block = Block(*arguments)
        self.out_blocks = nn.ModuleList(Block(*arguments, skip=True) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(embed_dim)
        self.mlm_layer = PredictionHead(embed_dim, vocabulary)
        self.apply(_initialise)

    def forward(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (N, L, V) over the image tokens and features (N, L, D).

        Args:
            tokens: (N, L) int64, row-major; `codebook_size` where masked.
            labels: (N,) int64; `num_classes` for the unconditional prediction.
        """
        x = torch.cat([self.context_embed(labels[:, None]), self.token_emb(tokens)], dim=1)  # (N, 1 + L, D)
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        features = self.norm(x)[:, 1:]  # (N, L, D), without the class token
        logits = self.mlm_layer(features, self.token_emb.word_embeddings.weight)
        return logits[..., : self.codebook_size], features


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def maskgit_digits(dropout: float = 0.0) -> MaskGITTransformer:
    """Returns the 0.5 M parameter generator of 4x4 digit tokens."""
    return MaskGITTransformer(
        grid_size=4,
        codebook_size=128,
        embed_dim=96,
        depth=4,
        num_heads=4,
        mlp_ratio=3.0,
        num_classes=10,
        dropout=dropout,
    )
