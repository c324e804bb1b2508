"""A weighted sum of rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genenv.protocols import Context, ForgetfulReward, Reward, StatefulReward


class Mixture:
    """sum_c weight_c reward_c, each component kept by its name.

    Args:
        rewards: {name: reward}.
        weights: {name: weight}; 1 for names that are left out.
        normalise: standardise each component among the images of one context before it is weighed, as GRPO does with
            its groups, so that the weights hold whatever the components' scales are.
    """

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        weights: Mapping[str, float] | None = None,
        normalise: bool = False,
    ):
        self.rewards, self.normalise = dict(rewards), normalise
        given = dict(weights or {})
        unknown = set(given) - set(self.rewards)
        if unknown:
            raise ValueError(f"weights name no reward: {sorted(unknown)}; rewards are {sorted(self.rewards)}")
        self.weights = {name: float(given.get(name, 1.0)) for name in self.rewards}
        for name, weight in self.weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"the weight of reward {name!r} must be finite, got {weight}")

    def judge(self, images: Tensor, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted sum (N,) and each component (N,) as its judge gave it, float32.

        Raises:
            ValueError: if a component gives anything but N finite numbers, or a lone image is to be standardised.
        """
        if self.normalise and len(images) == 1:
            raise ValueError("normalised rewards compare images, got 1; use gym.make_vec")
        parts, total = {}, torch.zeros(len(images), device=images.device)
        for name, reward in self.rewards.items():
            value = reward(images, context)
            if value.shape != (len(images),):
                raise ValueError(f"reward {name!r} must return ({len(images)},), got {tuple(value.shape)}")
            if not bool(value.isfinite().all()):
                raise ValueError(f"reward {name!r} must be finite, got {value[~value.isfinite()][0].item()}")
            parts[name] = value.float()
            scaled = standardise_groups(parts[name], context) if self.normalise else parts[name]
            total = total + self.weights[name] * scaled
        return total, parts

    def __call__(self, images: Tensor, context: Context) -> Tensor:
        """Returns the weighted sum (N,)."""
        return self.judge(images, context)[0]

    def reset(self) -> None:
        """Lets the components that remember earlier batches forget them."""
        for reward in self.rewards.values():
            if isinstance(reward, ForgetfulReward):
                reward.reset()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of every component that has one."""
        stateful = {n: r for n, r in self.rewards.items() if isinstance(r, StatefulReward)}
        return {name: reward.state_dict() for name, reward in stateful.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        for name, value in state.items():
            reward = self.rewards[name]
            assert isinstance(reward, StatefulReward)
            reward.load_state_dict(value)


def standardise_groups(value: Tensor, context: Context) -> Tensor:
    """Returns (value - mean) / (std + 1e-4) among the images of each context, (N,).

    That of a group of one is 0. The 1e-4 is that of arXiv 2603.23086's code.
    """
    _, group = context.unique(dim=0, return_inverse=True)
    count = group.bincount()
    mean = torch.zeros_like(count, dtype=value.dtype).index_add(0, group, value) / count
    deviation = value - mean[group]
    variance = torch.zeros_like(mean).index_add(0, group, deviation.square()) / count
    return deviation / (variance.sqrt()[group] + 1e-4)


def as_mixture(reward: Reward) -> Mixture:
    """Returns a reward as a mixture; one that is none becomes its only component, named after its class."""
    if isinstance(reward, Mixture):
        return reward
    return Mixture({getattr(reward, "name", type(reward).__name__): reward})
