"""Judges of finished images, by name."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Real

from genenv.checkpoints import torch_device
from genenv.protocols import Reward
from genenv.rewards.mixture import Mixture
from genenv.tiers import parts_of, tier_of


@dataclasses.dataclass(frozen=True)
class Named:
    """A reward that has a name.

    Attributes:
        factory: "module:function", called as (backbone, device), and with `prompts=` where it takes them and the
            environment has its own; its libraries are loaded when the reward is made.
        suits: whether a backbone has what the reward needs.
    """

    factory: str
    suits: Callable[[str], bool] = lambda backbone: True


def _has_part(part: str) -> Callable[[str], bool]:
    return lambda backbone: part in parts_of(backbone)


def _has_scorer(name: str) -> Callable[[str], bool]:
    return lambda backbone: name in tier_of(backbone).scorers and tier_of(backbone).prompt is not None


def _has_features(backbone: str) -> bool:
    return tier_of(backbone).reward_features is not None


REWARDS = {
    "adversarial": Named("genenv.rewards.adversarial:pretrained", _has_part("discriminator")),
    "classifier": Named("genenv.rewards.classifier:make", _has_part("reward_features")),
    "clip": Named("genenv.rewards.clip:make_clip", _has_scorer("clip")),
    "fid": Named("genenv.rewards.fid:make", _has_features),
    "hpsv2": Named("genenv.rewards.clip:make_hpsv2", _has_scorer("hpsv2")),
    "hpsv2.0": Named("genenv.rewards.clip:make_hpsv2_0", _has_scorer("hpsv2.0")),
    "loo_fid": Named("genenv.rewards.loo_fid:make", _has_features),
    "loo_fid_full": Named("genenv.rewards.loo_fid:make_full", _has_part("reward_features")),
    "pickscore": Named("genenv.rewards.clip:make_pickscore", _has_scorer("pickscore")),
    "png_size": Named("genenv.rewards.png_size:make"),
}
"""Name -> reward, of those that every tier may have; a module of one's own may add to them, and a tier may bring its
own."""


def available(backbone: str) -> list[str]:
    """Returns the names of the rewards that a backbone has, those of its tier among them.

    Raises:
        ValueError: if there is no such backbone.
    """
    own = tier_of(backbone).rewards
    return sorted({*own, *(name for name, reward in REWARDS.items() if reward.suits(backbone))})


def make_reward(
    spec: str | Mapping[str, float],
    backbone: str,
    device: str,
    own: Mapping[str, Callable[[], Reward]] | None = None,
    prompts: Sequence[str] | None = None,
) -> Mixture | None:
    """Returns the reward that a string or a {name: weight} mapping describes; None for "none".

    Args:
        spec: "none", "default" (the tier's own), a name that `available` gives, "module:factory", or {name: weight} of
            several; there the entry "normalise": True standardises each among the images of a group.
        backbone: whose images are judged.
        device: where the judges run.
        own: {name: factory} of rewards that replace those of the same name, such as a discriminator to be trained.
        prompts: the text of each context, where the environment was given some; otherwise rewards that compare images
            with texts have those of the tier.

    Raises:
        ValueError: if it describes no reward.
    """
    if not isinstance(spec, str | Mapping):
        raise ValueError(
            "reward must be a name, 'module:factory' or a mapping such as {'loo_fid': 1.0}, "
            f"got {spec!r}; use reward='none' for no reward"
        )
    device = str(torch_device(device))
    if spec == "default":
        spec = tier_of(backbone).default_reward
    if spec == "none":
        return None
    weights = {spec: 1.0} if isinstance(spec, str) else dict(spec)
    normalise = weights.pop("normalise", False)
    if not isinstance(normalise, bool):
        raise ValueError(f"reward: normalise must be True or False, got {normalise!r}")
    if not weights:
        raise ValueError("reward must name at least one reward, got {}; use reward='none' for no reward")
    for name, weight in weights.items():
        if not isinstance(weight, Real) or isinstance(weight, bool):
            raise ValueError(f"the weight of reward {name!r} must be a number, got {weight!r}")
    own = own or {}
    rewards = {
        name: own[name]() if name in own else _make(name, backbone, device, prompts) for name in weights
    }
    return Mixture(rewards, weights, normalise)


def _make(name: str, backbone: str, device: str, prompts: Sequence[str] | None) -> Reward:
    own = tier_of(backbone).rewards
    if name in own:
        return _call(own[name], backbone, device, prompts)
    path = REWARDS[name].factory if name in REWARDS else name
    module, separator, attribute = path.partition(":")
    if not separator:
        known = sorted({*own, *REWARDS})
        raise ValueError(
            f"reward must be one of none, default, {', '.join(known)} or 'module:factory', got {name!r}"
        )
    try:
        factory: Callable[..., Reward] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(
            f"reward {name!r} cannot be loaded: {error}; 'module:factory' must name a function of a module"
        ) from error
    try:
        inspect.signature(factory).bind(backbone, device)
    except (TypeError, ValueError):
        raise ValueError(
            f"reward {name!r} must name a function (backbone, device) -> reward, got {factory!r}"
        ) from None
    return _call(factory, backbone, device, prompts)


def _call(
    factory: Callable[..., Reward], backbone: str, device: str, prompts: Sequence[str] | None
) -> Reward:
    wanted = prompts is not None and "prompts" in inspect.signature(factory).parameters
    return factory(backbone, device, prompts=prompts) if wanted else factory(backbone, device)
