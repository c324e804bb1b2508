"""The entry points of Gymnasium: names in, an environment out."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

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


def vector(
    num_envs: int = 1,
    *,
    sampler: str,
    backbone: str,
    num_steps: int,
    reward: str | Mapping[str, float] = "loo_fid",
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
    for name, value in (("autoreset_mode", "Disabled"), ("output", "numpy")):
        if kwargs.get(name, value) != value:
            raise ValueError(f"gym.make has {name}={value!r} only, got {kwargs[name]!r}; use gym.make_vec")
        kwargs.pop(name, None)
    return GenEnv(vector(1, autoreset_mode="Disabled", **kwargs))
