"""The entry points of Gymnasium: names in, an environment out."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from gymnasium.vector import VectorEnv

from genenv.checkpoints import torch_device
from genenv.contexts import ClassLabels
from genenv.rewards import make_reward
from genenv.single_env import GenEnv
from genenv.vector_env import GenVectorEnv
from genenv.viz.frames import draw_frame, show_frames
from genenv.wrappers.vector import EMAActionSmoothing, TerminalReward

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _is_a(*types: type) -> Callable[[Any], bool]:
    """Returns the test for values of some types; a bool is no number."""
    return lambda value: isinstance(value, types) and not isinstance(value, bool)


def _are_names(value: Any) -> bool:
    names = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return value is None or (names and all(isinstance(name, str) for name in value))


TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_envs": (_is_a(Integral), "a whole number of images, such as 64"),
    "backbone": (_is_a(str), "a name or a folder, such as 'digits'"),
    "num_steps": (_is_a(Integral), "a whole number of decisions, such as 4"),
    "smoothing": (_is_a(Real), "a number in [0, 1); 0 does not smooth"),
    "observe": (_are_names, "a list of names, such as ['tokens', 'step'], or None for the usual ones"),
    "device": (_is_a(str, torch.device), "a name, such as 'cpu', 'cuda' or 'auto'"),
}
"""Keyword argument -> (what is legal, what it must be); the parts of an environment check what they receive."""


def _checked(make: Callable[..., VectorEnv]) -> Callable[..., VectorEnv]:
    """Turns a wrong name or type among the keyword arguments into a ValueError with the remedy."""
    accepted = inspect.signature(make).parameters

    @functools.wraps(make)
    def checked(num_envs: int = 1, **kwargs) -> VectorEnv:
        for name, value in {"num_envs": num_envs, **kwargs}.items():
            if name not in accepted:
                raise ValueError(
                    f"keyword arguments must be among {', '.join(accepted)}, got {name}={value!r}"
                )
            legal, rule = TYPES.get(name, (None, ""))
            if legal is not None and not legal(value):
                raise ValueError(f"{name} must be {rule}, got {value!r}")
        return make(num_envs, **kwargs)

    return checked


@_checked
def vector(
    num_envs: int = 1,
    *,
    sampler: str,
    backbone: str,
    num_steps: int,
    reward: str | Mapping[str, float] = "none",
    smoothing: float = 0.0,
    observe: Sequence[str] | None = None,
    action_mode: str = "residual",
    contexts: str | Sequence[int] = "uniform",
    device: str = "cpu",
    dtype: str = "float32",
    output: str = "torch",
    autoreset_mode: str = "SameStep",
    render_mode: str | None = None,
    compile: bool = False,
) -> VectorEnv:
    """Returns a batch of N environments, for `gymnasium.make_vec`.

    Args:
        num_envs: N.
        sampler: "module:function" that makes the paradigm's sampler; set by the id.
        backbone: the generator's weights: "digits", or a folder that `genenv zoo build` wrote.
        num_steps: decisions T for each image.
        reward: "none", a reward's name, "module:factory", or {name: weight} of several.
        smoothing: decay of the moving average over the actions, in [0, 1).
        observe: entries of the observation, such as ["features", "step", "context"].
        action_mode: "residual" or "physical".
        contexts: "uniform", "cycle", "grouped:G", or a list of labels.
        device: "cpu", "cuda", "cuda:1" ..., or "auto".
        dtype: of the generator's network: "float32", "bfloat16" or "float16".
        output: "torch" or "numpy".
        autoreset_mode: "SameStep", "NextStep" or "Disabled".
        render_mode: None, "rgb_array" or "human".
        compile: run the network through torch.compile.

    Raises:
        ValueError: if a keyword argument is unknown, or its value is not legal.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    place = torch_device(device)
    module, _, function = sampler.partition(":")
    generator = getattr(importlib.import_module(module), function)(
        backbone=backbone,
        num_steps=num_steps,
        device=place,
        dtype=DTYPES[dtype],
        needs_features=observe is not None and "features" in observe,
        compile=compile,
    )
    env: VectorEnv = GenVectorEnv(
        generator,
        ClassLabels(generator.num_classes, contexts),
        num_envs,
        observe=observe,
        action_mode=action_mode,
        autoreset_mode=autoreset_mode,
        output=output,
        device=place,
        render_mode=render_mode,
        frame=draw_frame,
        show=show_frames,
    )
    judge = make_reward(reward, backbone, str(place))
    if judge is not None:
        env = TerminalReward(env, judge)
    if smoothing:
        env = EMAActionSmoothing(env, smoothing)
    return env


def single(**kwargs) -> GenEnv:
    """Returns one environment in NumPy form, for `gymnasium.make`; the arguments are those of `vector`."""
    for name, value in (("autoreset_mode", "Disabled"), ("output", "numpy"), ("num_envs", 1)):
        if kwargs.get(name, value) != value:
            raise ValueError(f"gym.make has {name}={value!r} only, got {kwargs[name]!r}; use gym.make_vec")
        kwargs.pop(name, None)
    return GenEnv(vector(1, autoreset_mode="Disabled", **kwargs))
