"""AdaGen's policy network (arXiv 2603.06993), under the parameter names of the released policies."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genenv.models.transformer import StepEmbedding, modulation


class AdaLN(nn.Module):
    """LayerNorm whose scale and shift follow a condition; starts as a plain LayerNorm."""

    def __init__(self, dim: int, condition_dim: int):
        super().__init__()
        self.adaLN_modulation = modulation(condition_dim, 2, dim)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Returns x (N, D) or (N, L, D), normalised, scaled and shifted by the condition (N, C)."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        if x.ndim == 3:
            shift, scale = shift[:, None], scale[:, None]
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class PolicyBackbone(nn.Module):
    """Generator features, step and class in, one number for each schedule parameter out.

    The last layer starts at zero, so an untrained policy is the hand-crafted schedule. The released policies do not
    see the class. The critic is the same network with one output. A policy may hold a table besides, the part of its
    schedule that is the same for every image, to which the network adds what an image needs.

    Args:
        feature_dim: D of the features (L, D); they are taken as they are where D is `hidden_dim`.
        grid_size: side of the feature map; L = grid_size ** 2.
        num_outputs: A, or 1 for a critic.
        hidden_dim: width of the feature map; 512 in the paper.
        head_dims: widths of the pointwise convolution and of the two hidden layers after it.
        num_classes: class labels, 0 to leave the class out.
        num_steps: rows T of the table; 0 to leave it out.

    Attributes:
        arguments: those that it was made with.
    """

    def __init__(
        self,
        feature_dim: int,
        grid_size: int,
        num_outputs: int,
        hidden_dim: int = 512,
        head_dims: tuple[int, int, int] = (128, 1024, 512),
        num_classes: int = 0,
        num_steps: int = 0,
    ):
        super().__init__()
        self.arguments = {
            "feature_dim": feature_dim,
            "grid_size": grid_size,
            "num_outputs": num_outputs,
            "hidden_dim": hidden_dim,
            "head_dims": tuple(head_dims),
            "num_classes": num_classes,
            "num_steps": num_steps,
        }
        self.grid_size = grid_size
        pooled = (grid_size + 1) // 2
        pointwise, first, second = head_dims
        same = feature_dim == hidden_dim
        self.x_embedder = nn.Identity() if same else nn.Linear(feature_dim, hidden_dim)
        self.t_embedder = StepEmbedding(hidden_dim)
        self.c_embedder = nn.Embedding(num_classes, hidden_dim) if num_classes else None
        self.adaLN1 = AdaLN(hidden_dim, hidden_dim)
        self.dw_conv = nn.Conv2d(hidden_dim, hidden_dim, 3, stride=2, padding=1, groups=hidden_dim)
        self.pw_conv = nn.Conv2d(hidden_dim, pointwise, 1)
        self.linear1 = nn.Linear(pointwise * pooled**2, first)
        self.adaLN2 = AdaLN(first, hidden_dim)
        self.linear2 = nn.Linear(first, second)
        self.adaLN3 = AdaLN(second, hidden_dim)
        self.linear3 = nn.Linear(second, num_outputs)
        nn.init.zeros_(self.linear3.weight)
        nn.init.zeros_(self.linear3.bias)
        self.table = nn.Parameter(torch.zeros(num_steps, num_outputs)) if num_steps else None

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
        own = self.linear3(x)
        if self.table is None:
            return own
        row = (
            observation["step"].long().clamp(max=len(self.table) - 1)
        )  # after the last decision no action counts
        return self.table[row] + own


def released_network(state: dict[str, Tensor]) -> PolicyBackbone:
    """Returns the policy of a released state dict, sized by its shapes, in eval mode and without gradients.

    AdaNAT's training checkpoints keep the same network under `policy_old.actor.`.

    Raises:
        ValueError: if the tensors are not such a policy's.
    """
    prefix = "policy_old.actor."
    if any(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    try:
        hidden_dim, pointwise = len(state["dw_conv.weight"]), len(state["pw_conv.weight"])
        first, places = state["linear1.weight"].shape
        second, num_outputs = len(state["linear2.weight"]), len(state["linear3.weight"])
        embedder = state.get("x_embedder.weight")
        policy = PolicyBackbone(
            hidden_dim if embedder is None else embedder.shape[1],
            grid_size=2 * math.isqrt(places // pointwise),
            num_outputs=num_outputs,
            hidden_dim=hidden_dim,
            head_dims=(pointwise, first, second),
        )
        policy.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"the tensors are not those of a released AdaGen policy: {error}") from None
    return policy.eval().requires_grad_(False)
