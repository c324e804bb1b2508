"""The policy network that steers a frozen generator, and a trained one as an actor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from genenv.models.policy import PolicyBackbone
from genenv.protocols import Observation
from genenv.vector_env import unwrapped

OBSERVE = ("features", "step", "context")
"""What the network sees."""


class PolicyActor:
    """A trained policy as an actor: observations to actions (N, A), without exploration.

    Attributes:
        env_id, env_kwargs: what it was trained on, for `gymnasium.make_vec(env_id, **env_kwargs)`.
    """

    def __init__(self, env_id: str, env_kwargs: dict[str, Any], act: Callable[[Observation], Tensor]):
        self.env_id, self.env_kwargs = env_id, env_kwargs
        self._act = act

    @torch.no_grad()
    def __call__(self, observation: Observation) -> Tensor:
        """Returns (N, A)."""
        return self._act(observation)


def make_network(env: gym.vector.VectorEnv, hidden_dim: int, num_outputs: int) -> PolicyBackbone:
    """Returns an untrained policy or critic for an environment that observes features.

    Raises:
        ValueError: if the features are no square map.
    """
    inner = unwrapped(env)
    length, feature_dim = inner.sampler.fields["features"].shape
    side = round(length**0.5)
    if side**2 != length:
        raise ValueError(f"features must be a square map of places, got {length} of them")
    return PolicyBackbone(
        feature_dim,
        grid_size=side,
        num_outputs=num_outputs,
        hidden_dim=hidden_dim,
        head_dims=(hidden_dim // 4, 2 * hidden_dim, hidden_dim),
        num_classes=inner.sampler.num_contexts,
    ).to(inner.device)


def frozen_network(env: gym.vector.VectorEnv, hidden_dim: int, state: dict[str, Tensor]) -> PolicyBackbone:
    """Returns the network of a checkpoint in eval mode, without gradients."""
    model = make_network(env, hidden_dim, len(state["linear3.bias"]))
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)
