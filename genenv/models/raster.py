"""What the transformers over image tokens in raster order share: how they are asked, and their cache."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from genenv.models.kv_cache import KVCache
from genenv.models.transformer import Remember


class RasterTransformer(nn.Module):
    """Predicts each token of a grid from its class and the tokens before it.

    The sequence is the class token followed by the image tokens in raster order; its entry j predicts token j.
    A network adds its layers, `hidden_states` and `logits`.

    Args:
        grid_size: side of the square token grid; L = grid_size ** 2.
        codebook_size: number of image tokens V.
        embed_dim: width D.
        depth: transformer blocks.
        num_heads: attention heads.
        num_classes: class labels C.
        null_class: whether label C is that of no class, which classifier-free guidance needs.
    """

    def __init__(
        self,
        grid_size: int,
        codebook_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        num_classes: int,
        null_class: bool = True,
    ):
        super().__init__()
        self.grid_size, self.codebook_size, self.embed_dim = grid_size, codebook_size, embed_dim
        self.depth, self.num_heads = depth, num_heads
        self.num_classes, self.null_class = num_classes, null_class

    def hidden_states(
        self,
        tokens: Tensor,
        labels: Tensor | None,
        start: int = 0,
        cache: KVCache | None = None,
        rows: slice = slice(None),
    ) -> Tensor:
        """Returns the last hidden states (R, M, D) of the M entries read; see `read`."""
        raise NotImplementedError

    def logits(self, features: Tensor) -> Tensor:
        """Returns the logits (..., V) of hidden states (..., D)."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (N, 1 + M, V) and features (N, 1 + M, D) of one causal pass.

        Args:
            tokens: (N, M) int64, the first M < L tokens; the last one of a grid predicts nothing.
            labels: (N,) int64; `num_classes` for the unconditional prediction, where there is a null class.
        """
        features = self.hidden_states(tokens, labels)
        return self.logits(features), features

    def log_prob(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Returns the log-probability (N, L) of each token given those before it (teacher forcing), with gradients.

        Args:
            tokens: (N, L) int64 in raster order.
            labels: (N,) int64; `num_classes` for the unconditional one, where there is a null class.
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
        features = self.hidden_states(tokens, labels, start, cache, rows)[:, -1]
        return self.logits(features), features

    def new_cache(self, num_rows: int) -> KVCache:
        """Returns an empty cache for sequences without their last token, which predicts nothing."""
        weight = next(self.parameters())
        return KVCache(
            self.depth,
            num_rows,
            self.num_heads,
            self.grid_size**2,
            self.embed_dim // self.num_heads,
            device=weight.device,
            dtype=weight.dtype,
        )


def causal_mask(start: int, length: int, device: torch.device) -> Tensor | None:
    """Returns what each of `length` new entries sees, (length, start + length) bool; None for one, which sees all."""
    if length == 1:
        return None
    return torch.ones(length, start + length, dtype=torch.bool, device=device).tril(start)


def remember_in(cache: KVCache | None, layer: int, rows: slice, start: int) -> Remember | None:
    """Returns what takes up a layer's keys and values of the entries from `start` on, None without a cache."""
    return None if cache is None else functools.partial(cache.write, layer, rows, start)


def initialise(module: nn.Module) -> None:
    """Draws a layer's weights as GPT-2 does, normal with standard deviation 0.02; biases are 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
