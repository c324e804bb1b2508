"""Networks of the reference agents."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StepEmbedding(nn.Module):
    """Sinusoids of a number, then a two-layer perceptron."""

    def __init__(self, dim: int, num_frequencies: int = 256):
        super().__init__()
        self.num_frequencies = num_frequencies
        self.mlp = nn.Sequential(nn.Linear(num_frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, step: Tensor) -> Tensor:
        """Returns (N, D) of steps (N,)."""
        half = self.num_frequencies // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=step.device) / half)
        angles = step.float()[:, None] * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class AdaLN(nn.Module):
    """LayerNorm whose scale and shift follow a condition; starts as a plain LayerNorm."""

    def __init__(self, dim: int, condition_dim: int):
        super().__init__()
        linear = nn.Linear(condition_dim, 2 * dim)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), linear)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Returns x (N, D) or (N, L, D), normalised, scaled and shifted by the condition (N, C)."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        if x.ndim == 3:
            shift, scale = shift[:, None], scale[:, None]
        return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


class PolicyBackbone(nn.Module):
    """AdaGen's policy network: generator features, step and class in, one number for each schedule parameter out.

    The last layer starts at zero, so an untrained policy is the hand-crafted schedule. Parameter names are those of
    the released policies, which do not see the class. The critic is the same network with one output.

    Args:
        feature_dim: D of the features (L, D).
        grid_size: side of the feature map; L = grid_size ** 2.
        num_outputs: A, or 1 for a critic.
        hidden_dim: width; 512 in the paper.
        num_classes: class labels, 0 to leave the class out.
    """

    def __init__(
        self, feature_dim: int, grid_size: int, num_outputs: int, hidden_dim: int = 512, num_classes: int = 0
    ):
        super().__init__()
        self.grid_size = grid_size
        pooled = (grid_size + 1) // 2
        self.x_embedder = nn.Linear(feature_dim, hidden_dim)
        self.t_embedder = StepEmbedding(hidden_dim)
        self.c_embedder = nn.Embedding(num_classes, hidden_dim) if num_classes else None
        self.adaLN1 = AdaLN(hidden_dim, hidden_dim)
        self.dw_conv = nn.Conv2d(hidden_dim, hidden_dim, 3, stride=2, padding=1, groups=hidden_dim)
        self.pw_conv = nn.Conv2d(hidden_dim, hidden_dim // 4, 1)
        self.linear1 = nn.Linear(hidden_dim // 4 * pooled**2, 2 * hidden_dim)
        self.adaLN2 = AdaLN(2 * hidden_dim, hidden_dim)
        self.linear2 = nn.Linear(2 * hidden_dim, hidden_dim)
        self.adaLN3 = AdaLN(hidden_dim, hidden_dim)
        self.linear3 = nn.Linear(hidden_dim, num_outputs)
        nn.init.zeros_(self.linear3.weight)
        nn.init.zeros_(self.linear3.bias)

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        """Returns (N, num_outputs) for features (N, L, D), step (N,) and, where used, context (N,)."""
        condition = self.t_embedder(observation["step"])
        if self.c_embedder is not None:
            condition = condition + self.c_embedder(observation["context"])
        x = self.adaLN1(self.x_embedder(observation["features"]), condition)  # (N, L, H)
        x = x.transpose(1, 2).unflatten(2, (self.grid_size, self.grid_size))
        x = F.gelu(self.pw_conv(F.gelu(self.dw_conv(x)))).flatten(1)
        x = F.gelu(self.adaLN2(self.linear1(x), condition))
        x = F.gelu(self.adaLN3(self.linear2(x), condition))
        return self.linear3(x)
