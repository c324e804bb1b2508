"""Judges of finished images, by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from numbers import Real

from genenv.checkpoints import is_released, torch_device
from genenv.protocols import Reward
from genenv.rewards.mixture import Mixture

REWARDS = {
    "adversarial": "genenv.rewards.adversarial:pretrained",
    "classifier": "genenv.rewards.classifier:make",
    "clip": "genenv.rewards.clip:make_clip",
    "fid": "genenv.rewards.fid:make",
    "hpsv2": "genenv.rewards.clip:make_hpsv2",
    "hpsv2.0": "genenv.rewards.clip:make_hpsv2_0",
    "loo_fid": "genenv.rewards.loo_fid:make",
    "pickscore": "genenv.rewards.clip:make_pickscore",
}
"""Name -> "module:factory"; a factory takes (backbone, device)."""

DEFAULT = "adversarial"
"""What "default" stands for where the backbone ships its judges, as the digits do; released generators have none."""


def make_reward(
    spec: str | Mapping[str, float],
    backbone: str,
    device: str,
    own: Mapping[str, Callable[[], Reward]] | None = None,
) -> Mixture | None:
    """Returns the reward that a string or a {name: weight} mapping describes; None for "none".

    Args:
        spec: "none", "default", a name of `REWARDS`, "module:factory", or {name: weight} of several; there the entry
            "normalise": True standardises each among the images of one context.
        backbone: whose images are judged.
        device: where the judges run.
        own: {name: factory} of rewards that replace those of the same name, such as a discriminator to be trained.

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
        spec = "none" if is_released(backbone) else DEFAULT
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
    rewards = {name: own[name]() if name in own else _make(name, backbone, device) for name in weights}
    return Mixture(rewards, weights, normalise)


def _make(name: str, backbone: str, device: str) -> Reward:
    path = REWARDS.get(name, name)
    module, separator, attribute = path.partition(":")
    if not separator:
        raise ValueError(
            f"reward must be one of none, default, {', '.join(REWARDS)} or 'module:factory', got {name!r}"
        )
    try:
        factory: Callable[[str, str], Reward] = getattr(importlib.import_module(module), attribute)
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
    return factory(backbone, device)
