"""The entry points of Gymnasium: names in, an environment out."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from types import NoneType
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from genenv.checkpoints import torch_device
from genenv.contexts import Contexts
from genenv.fields import PREDICTED
from genenv.protocols import Sampler
from genenv.registration import defaults
from genenv.rewards import make_reward
from genenv.single_env import GenEnv
from genenv.tiers import PUBLISHED, tier_of
from genenv.vector_env import GenVectorEnv
from genenv.viz.frames import draw_frame, show_frames
from genenv.wrappers.vector import EMAActionSmoothing, TerminalReward

# A forked child has none of the threads that torch has started in its parent, and its first parallel operation would
# wait for them for ever: AsyncVectorEnv, SB3's SubprocVecEnv and others fork after they have made an environment.
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))

MAX_STEPS = 10_000
"""Generation steps of an image: a schedule is kept in memory, and more is a mistake."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _is_a(*types: type) -> Callable[[Any], bool]:
    """Returns the test for values of some types; a bool is no number."""
    return lambda value: isinstance(value, types) and not isinstance(value, bool)


def _are_names(value: Any) -> bool:
    names = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return value is None or (names and all(isinstance(name, str) for name in value))


def _is_grid(value: Any) -> bool:
    levels = isinstance(value, Sequence) and not isinstance(value, str)
    return value is None or isinstance(value, str) or (levels and all(map(_is_a(Real), value)))


NUMBER = (_is_a(Real, NoneType), "a number, or None for the usual one")

TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_envs": (_is_a(Integral), "a whole number of images, such as 64"),
    "backbone": (_is_a(str), "a name or a folder, such as 'digits'"),
    "num_steps": (
        _is_a(Integral, NoneType),
        "a whole number of steps, such as 4, or None for the paradigm's own",
    ),
    "tokens_per_decision": (_is_a(Integral, NoneType), "a whole number, or None for a row of the grid"),
    "smoothing": (_is_a(Real), "a number in [0, 1); 0 does not smooth"),
    "observe": (_are_names, "a list of names, such as ['tokens', 'step'], or None for the usual ones"),
    "guidance_weight": NUMBER,
    "mask_temperature": NUMBER,
    "token_temperature": NUMBER,
    "top_k": NUMBER,
    "top_p": NUMBER,
    "top_k_rule": (_is_a(str), "'monotone' or 'released'"),
    "schedule": (_is_a(str, NoneType), "'published', or None for the tier's own"),
    "solver": (_is_a(str), "a name, such as 'dpm2s'"),
    "grid": (_is_grid, "a name, such as 'edm', a list of noise levels, or None for the usual times"),
    "sigma_max": NUMBER,
    "sigma_min": NUMBER,
    "network": (_is_a(str, NoneType), "a name, such as 'sit', or None for the backbone's own"),
    "transition": (_is_a(str, NoneType), "a name, such as 'ddim', or None for the network's usual one"),
    "eta": NUMBER,
    "prompts": (_are_names, "a list of texts, such as ['a photo of a cat'], or None for labels"),
    "budget": (_is_a(str), "'projection' or 'multiplier'"),
    "derivative": (_is_a(str), "'jvp' or 'finite-difference'"),
    "dtype": (_is_a(str), "a name, such as 'float32'"),
    "compile": (lambda value: isinstance(value, bool), "True or False"),
    "device": (_is_a(str, torch.device), "a name, such as 'cpu', 'cuda' or 'auto'"),
}
"""Keyword argument -> (what is legal, what it must be); the parts of an environment check what they receive."""


SAMPLER_ARGUMENTS = ("backbone", "num_steps", "device", "dtype", "needs_features", "compile")
"""What every paradigm's `make_sampler` takes; its further parameters are keyword arguments of its ids. `needs_features`
says whether something of `genenv.fields.PREDICTED` is observed."""


def _sampler_factory(sampler: str) -> tuple[Callable[..., Sampler], list[str]]:
    """Returns the function that "module:function" names, and the keyword arguments of its own."""
    module, _, function = sampler.partition(":")
    factory = getattr(importlib.import_module(module), function)
    names = inspect.signature(factory).parameters
    return factory, [name for name in names if name not in SAMPLER_ARGUMENTS]


def own_arguments(env_id: str) -> list[str]:
    """Returns the keyword arguments that an id has beside those of every one; see `defaults` for errors."""
    return _sampler_factory(defaults(env_id)["sampler"])[1]


def published_schedule(env_id: str) -> dict[str, Any]:
    """Returns the keyword argument that asks for the published schedule, {} where an id has no schedule to choose."""
    return {"schedule": PUBLISHED} if "schedule" in own_arguments(env_id) else {}


def has_own_schedule(env_id: str, env_kwargs: Mapping[str, Any]) -> bool:
    """Returns whether the hand-crafted schedule of an environment is its tier's own, not the published one.

    Args:
        env_id: a registered id.
        env_kwargs: its keyword arguments.
    """
    kwargs = defaults(env_id) | dict(env_kwargs)
    paradigm = importlib.import_module(kwargs["sampler"].partition(":")[0])
    own = tier_of(kwargs["backbone"]).schedules
    return kwargs.get("schedule") is None and any(part in own for part in getattr(paradigm, "PARTS", ()))


class UnknownArgumentError(TypeError, ValueError):
    """A keyword argument that an environment does not take: a TypeError as Python's own, and a user's mistake."""


def _checked(make: Callable[..., VectorEnv]) -> Callable[..., VectorEnv]:
    """Turns an unknown keyword argument into an UnknownArgumentError and a value of a wrong type into a ValueError.

    Both say the remedy. NumPy's scalars and arrays pass as Python's own numbers and lists.
    """
    parameters = inspect.signature(make).parameters.values()
    common = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    common.remove("sampler")

    @functools.wraps(make)
    def checked(num_envs: int = 1, *, sampler: str, **kwargs) -> VectorEnv:
        accepted = [*common, *_sampler_factory(sampler)[1]]
        given = {"num_envs": num_envs, **kwargs}
        given = {k: v.tolist() if isinstance(v, np.generic | np.ndarray) else v for k, v in given.items()}
        for name, value in given.items():
            if name not in accepted:
                # clients that try an argument out, such as TorchRL, look for these words of Python's
                raise UnknownArgumentError(
                    f"got an unexpected keyword argument {name!r}; the environment takes {', '.join(accepted)}"
                )
            legal, rule = TYPES.get(name, (None, ""))
            if legal is not None and not legal(value):
                raise ValueError(f"{name} must be {rule}, got {value!r}")
        return make(sampler=sampler, **given)

    return checked


def context_names(backbone: str, number: int) -> tuple[str, ...]:
    """Returns the names of what a backbone can show; numbers where its tier does not name as many."""
    names = tier_of(backbone).class_names
    return tuple(names) if len(names) == number else tuple(str(i) for i in range(number))


@_checked
def vector(
    num_envs: int = 1,
    *,
    sampler: str,
    backbone: str,
    num_steps: int | None,
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
    **options: Any,
) -> VectorEnv:
    """Returns a batch of N environments, for `gymnasium.make_vec`.

    Args:
        num_envs: N.
        sampler: "module:function" that makes the paradigm's sampler; set by the id.
        backbone: the generator's weights: a name that `genenv list` shows, such as "digits", or a folder that
            `genenv zoo build` wrote.
        num_steps: generation steps of each image; None for the paradigm's own number.
        reward: "none", "default" (the backbone's own), a name, "module:factory", or {name: weight} of several.
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
        options: of the paradigm: the settings of its hand-crafted schedule, such as `guidance_weight`, the
            `solver` and `grid` of DiT and SiT, the `top_k_rule` of VAR. `prompts` are the names of its contexts, and
            what rewards compare images with.

    Raises:
        UnknownArgumentError: if a keyword argument is unknown.
        ValueError: if the value of one is not legal.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if num_steps is not None and num_steps > MAX_STEPS:
        raise ValueError(f"num_steps must be at most {MAX_STEPS:,}, got {num_steps}")
    place = torch_device(device)
    prompts = options.get("prompts")
    generator = _sampler_factory(sampler)[0](
        backbone=backbone,
        num_steps=num_steps,
        device=place,
        dtype=DTYPES[dtype],
        needs_features=observe is not None and not PREDICTED.isdisjoint(observe),
        compile=compile,
        **options,
    )
    env: VectorEnv = GenVectorEnv(
        generator,
        Contexts(prompts or context_names(backbone, generator.num_contexts), contexts),
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
    judge = make_reward(reward, backbone, str(place), prompts=prompts)
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


single.metadata = GenEnv.metadata  # type: ignore[attr-defined]  # where gym.make looks for the render modes
