"""The blocks that the transformers share, under their released names."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Remember = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes the keys and values (R, heads, M, head_dim) of what is read, returns those of all that was read so far."""


class Attention(nn.Module):
    """Multi-head self-attention; `qkv` is packed [q | k | v] with the heads inside each."""

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, L, D) of x (N, L, D)."""
        out = F.scaled_dot_product_attention(*split_heads(self.qkv(x), self.num_heads))
        return self.proj(merge_heads(out))


class MLP(nn.Module):
    """Two linear layers with a GELU between them, exact ("none") or its "tanh" approximation."""

    def __init__(self, embed_dim: int, hidden_dim: int, approximate: str):
        super().__init__()
        self.approximate = approximate
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, L, D) of x (N, L, D)."""
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries, keys and values (N, heads, L, D / heads) of the packed qkv (N, L, 3 D)."""
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def merge_heads(out: Tensor) -> Tensor:
    """Returns (N, L, D) of an attention's result (N, heads, L, D / heads)."""
    return out.transpose(1, 2).flatten(2)


class StepEmbedding(nn.Module):
    """Sinusoids of a number, a step or a time, then a two-layer perceptron."""

    def __init__(self, dim: int, num_frequencies: int = 256):
        super().__init__()
        self.num_frequencies = num_frequencies
        self.mlp = nn.Sequential(nn.Linear(num_frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, step: Tensor) -> Tensor:
        """Returns (N, D) of steps (N,)."""
        return self.mlp(sinusoids(step, self.num_frequencies).to(next(self.mlp.parameters()).dtype))


def sinusoids(step: Tensor, num_frequencies: int = 256) -> Tensor:
    """Returns (N, num_frequencies) float32 of numbers (N,): cosines, then sines, of falling frequency."""
    half = num_frequencies // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=step.device) / half)
    angles = step.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def modulation(condition_dim: int, num_outputs: int, dim: int) -> nn.Sequential:
    """Returns the layers from a condition (N, C) to its shifts, scales and gates (N, num_outputs D), zero at first."""
    linear = nn.Linear(condition_dim, num_outputs * dim)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.SiLU(), linear)
