"""A weighted sum of rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genenv.distributed import gather
from genenv.protocols import Context, ForgetfulReward, Reward, StatefulReward

FLOAT32_MAX = torch.finfo(torch.float32).max


class TooFewImagesError(ValueError):
    """A reward compares more images with each other than there are at once."""


class Mixture:
    """sum_c weight_c reward_c, each component kept by its name.

    Args:
        rewards: {name: reward}.
        weights: {name: weight}; 1 for names that are left out.
        normalise: standardise each component among the images of a group before it is weighed, as GRPO does, so that
            the weights hold whatever the components' scales are. With several processes a group's images are those of
            all.

    Raises:
        ValueError: if a weight names no reward, or is not finite in float32.
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
            if not abs(weight) <= FLOAT32_MAX:
                limit = f", and float32 ends at {FLOAT32_MAX:.2g}" if math.isfinite(weight) else ""
                raise ValueError(f"the weight of reward {name!r} must be finite, got {weight}{limit}")

    def check_number(self, num_images: int) -> None:
        """Raises a TooFewImagesError where so few images at once cannot be judged."""
        needed = {name: getattr(reward, "min_images", 1) for name, reward in self.rewards.items()}
        needed |= {"normalise": 2} if self.normalise else {}
        for name, number in needed.items():
            if num_images < number:
                raise TooFewImagesError(
                    f"reward {name!r} compares at least {number} images with each other, got {num_images}: "
                    "use gym.make_vec with more of them"
                )

    def judge(
        self, images: Tensor, context: Context, group: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted sum (N,) and each component (N,) as its judge gave it, float32.

        Args:
            images: (N, C, H, W) in [0, 1].
            context: (N,), what each was asked to show.
            group: (N,) int64, among whose images components are standardised; None for those of one context.

        Raises:
            ValueError: if a component gives anything but N finite numbers, there is nothing to standardise among, or
                the weighted sum is too large for float32.
        """
        parts = {name: _paid(name, reward(images, context), images) for name, reward in self.rewards.items()}
        given = torch.stack([*parts.values()])  # (components, N)
        values = given
        if self.normalise:
            (everyone, own), (groups, _) = gather(given.T), gather(context if group is None else group)
            values = standardise_groups(everyone.T, groups)[:, own]
        weighted = [weight * value for weight, value in zip(self.weights.values(), values, strict=True)]
        total = torch.stack(weighted).sum(0)
        if not bool(given.isfinite().all() & total.isfinite().all()):  # one wait for the device
            for name, value in parts.items():
                if not bool(value.isfinite().all()):
                    raise ValueError(
                        f"reward {name!r} must be finite, got {value[~value.isfinite()][0].item()}"
                    )
            sizes = {name: part.abs().max().item() for name, part in zip(parts, weighted, strict=True)}
            largest = max(sizes, key=lambda name: sizes[name])
            raise ValueError(
                f"the weight of reward {largest!r} must keep the weighted sum finite in float32, got "
                f"{self.weights[largest]:g}"
            )
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
        """Restores what `state_dict` returned.

        Raises:
            ValueError: if it is the state of other rewards.
        """
        stateful = {n: r for n, r in self.rewards.items() if isinstance(r, StatefulReward)}
        if set(state) != set(stateful):
            raise ValueError(
                f"the state must be of the rewards {sorted(stateful)}, got that of {sorted(state)}"
            )
        for name, reward in stateful.items():
            reward.load_state_dict(state[name])


def _paid(name: str, value: Any, images: Tensor) -> Tensor:
    """Returns what a reward gave as (N,) float32 on the images' device."""
    count = len(images)
    try:
        paid = torch.as_tensor(value, device=images.device)
        found = f"{type(value).__name__} of shape {tuple(paid.shape)}"
    except (TypeError, ValueError, RuntimeError):  # of None, words, ragged lists
        paid, found = None, f"{value!r:.60}"
    if paid is not None and count == 1 and paid.ndim == 0:
        paid = paid[None]
    if paid is None or paid.shape != (count,) or paid.is_complex():
        raise ValueError(
            f"reward {name!r} must return one number for each image, ({count},), as a tensor, array or list, "
            f"got {found}"
        )
    return paid.float()


def standardise_groups(value: Tensor, group: Tensor) -> Tensor:
    """Returns (value - mean) / (std + 1e-4) among the images of each group, of values (..., N).

    That of an image alone in its group is 0. The 1e-4 is that of arXiv 2603.23086's code.

    Args:
        value: (..., N).
        group: (N,) or (N, D): images with equal entries are of one group.

    Raises:
        ValueError: if every image is alone in its group.
    """
    index, count = _numbered(group)
    if len(count) == len(index):
        raise ValueError(
            "normalised rewards compare images of one group, and all contexts of the batch differ: "
            "use contexts='grouped:G' or more images"
        )
    deviation = value - _means(value, index, count)[..., index]
    return deviation / (_means(deviation.square(), index, count).sqrt()[..., index] + 1e-4)


def centre_groups(value: Tensor, group: Tensor) -> Tensor:
    """Returns value - mean among the images of each group, as `standardise_groups` before it divides."""
    index, count = _numbered(group)
    return value - _means(value, index, count)[..., index]


def _numbered(group: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the number of each image's group (N,), from 0 on, and the images of each group (K,)."""
    _, index = group.unique(dim=0, return_inverse=True)
    return index, index.bincount()


def _means(value: Tensor, index: Tensor, count: Tensor) -> Tensor:
    """Returns the mean (..., K) of each group."""
    return value.new_zeros(*value.shape[:-1], len(count)).index_add(-1, index, value) / count


def as_mixture(reward: Reward) -> Mixture:
    """Returns a reward as a mixture; one that is none becomes its only component, named after its class."""
    if isinstance(reward, Mixture):
        return reward
    return Mixture({getattr(reward, "name", type(reward).__name__): reward})
