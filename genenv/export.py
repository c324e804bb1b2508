"""Schedules of noise levels as files and as schedulers of diffusers take them; networks as their papers' code does.

A schedule.json holds grids at several numbers of steps K: K+1 noise levels sigma (x = data + sigma noise), the last 0.

    {"sigma_max": 20.0, "sigmas": {"2": [20.0, 1.2, 0.0], "3": [20.0, 2.1, 0.4, 0.0]}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genenv.checkpoints import replacing, write_text
from genenv.grids import resampled
from genenv.solvers import noise_levels
from genenv.tiers import load_part

SCHEDULE = "schedule.json"
"""The file's name in a run directory."""

DIFFUSION = ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler")
FLOW = "FlowMatchEulerDiscreteScheduler"
SCHEDULERS = (*DIFFUSION, FLOW)
"""The schedulers of diffusers that a grid can be given to."""

DDPM = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
"""The diffusion schedulers' usual configuration here, as of DDPM and DiT; their own defaults differ from each other."""

GENERATOR = "generator"
"""The folder in a run directory with the networks that it has tuned."""
LAYOUTS = {"llamagen": ("llamagen", "model", ""), "taming": ("vqgan", "state_dict", "transformer.")}
"""Code that a network is exported for -> its name in a backbone, and where a checkpoint of that code has it: under
which entry, and before which names. The names themselves are those that our networks have."""

TOLERANCE = 1e-3
"""Relative; a scheduler rounds levels to float32, and finds them in a table."""


def schedule_text(grids: Mapping[int, Tensor]) -> str:
    """Returns the schedule.json of grids {K: (K+1,)} that begin at the same level."""
    levels = {str(steps): noise_levels(grid).tolist() for steps, grid in grids.items()}
    return json.dumps({"sigma_max": next(iter(levels.values()))[0], "sigmas": levels}, indent=2) + "\n"


def write_schedule(path: Path, grids: Mapping[int, Tensor]) -> None:
    """Writes a schedule.json."""
    write_text(path, schedule_text(grids))


def read_schedule(path: Path) -> dict[int, Tensor]:
    """Returns the grids {K: (K+1,) float64} of a schedule.json, or of a run directory that holds one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no schedule.
    """
    file = path / SCHEDULE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"there is no {file}; a run of agents.art, or of agents.adagen on DiT or SiT, writes one when it ends"
        )
    try:
        sigmas = json.loads(file.read_text(encoding="utf-8"))["sigmas"]
        grids = {int(steps): noise_levels(levels) for steps, levels in sigmas.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{file} is no schedule of noise levels: {reason}") from None
    wrong = [steps for steps, levels in grids.items() if len(levels) != steps + 1]
    if wrong or not grids:
        raise ValueError(
            f"{file} is no schedule of noise levels: it must have K + 1 levels for each number of steps K"
            + (f", for {wrong[0]} it has {len(grids[wrong[0]])}" if wrong else ", it has none")
        )
    return grids


def at_steps(grids: Mapping[int, Tensor], steps: int | None) -> Tensor:
    """Returns a schedule's grid (K+1,) of `steps` steps, where it has none resampled from the nearest, finer of two.

    Raises:
        ValueError: if steps < 1, or is None where there are several.
    """
    if steps is None and len(grids) > 1:
        raise ValueError(f"steps must be a number, such as one of {', '.join(map(str, grids))}, got None")
    steps = next(iter(grids)) if steps is None else steps
    nearest = min(grids, key=lambda other: (abs(other - steps), -other))
    return grids[nearest] if nearest == steps else resampled(grids[nearest], steps)


def write_weights(source: Path, layout: str, out: Path) -> None:
    """Writes a network of a backbone's folder as a checkpoint of the code that it comes from.

    Args:
        source: the folder, or the run directory that tuned it.
        layout: one of `LAYOUTS`.
        out: the file, a dictionary of tensors as torch saves it.

    Raises:
        ValueError: if there is no such layout, the backbone has no such network, or the run has tuned another.
        CheckpointError: if its weights are missing or damaged.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    part, entry, prefix = LAYOUTS[layout]
    tuned = source / GENERATOR
    if tuned.is_dir() and not (tuned / f"{part}.safetensors").is_file():
        raise ValueError(
            f"{source} has not tuned the network {part!r} of {layout}: {tuned} has no {part}.safetensors"
        )
    backbone = tuned if tuned.is_dir() else source
    state = load_part(part, str(backbone)).state_dict()
    with replacing(out) as partial:
        torch.save({entry: {prefix + name: value for name, value in state.items()}}, partial)


def for_diffusers(
    levels: Tensor, scheduler: str, config: Mapping[str, Any] | None = None
) -> dict[str, list[float] | list[int]]:
    """Returns the arguments of `set_timesteps` with which a scheduler of diffusers follows a grid.

    `EulerDiscreteScheduler` takes the levels themselves; `HeunDiscreteScheduler` takes timesteps, which may lie between
    those of training; `DPMSolverMultistepScheduler` rounds them to those of training, and so moves the levels a little;
    `FlowMatchEulerDiscreteScheduler` takes the levels of the straight path, sigma / (1 + sigma).

    Args:
        levels: (K+1,).
        scheduler: one of `SCHEDULERS`.
        config: the model's scheduler_config.json, with which the scheduler must be made; by default `DDPM`, or for
            `FlowMatchEulerDiscreteScheduler` {}, which does not shift.

    Raises:
        ImportError: if diffusers is not installed.
        ValueError: if the scheduler cannot follow the grid: the levels go beyond its training, two fall on one
            timestep, or the configuration moves them.
    """
    try:
        import diffusers
    except ImportError:
        raise ImportError("this needs diffusers: pip install 'genenv[diffusers]'") from None
    if scheduler not in SCHEDULERS:
        raise ValueError(f"scheduler must be one of {', '.join(SCHEDULERS)}, got {scheduler!r}")
    if config is None:
        config = {} if scheduler == FLOW else DDPM
    follower = getattr(diffusers, scheduler).from_config(dict(config))
    grid = wanted = noise_levels(levels)
    if scheduler == FLOW:
        wanted = grid / (1 + grid)
        arguments = {"sigmas": wanted[:-1].tolist()}
    else:
        arguments = _of_training(grid, follower.alphas_cumprod.double(), scheduler)
    follower.set_timesteps(**arguments)
    if scheduler == "DPMSolverMultistepScheduler":
        return arguments  # on the nearest levels
    found = follower.sigmas.double().unique_consecutive()  # Heun's come twice
    if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=TOLERANCE, atol=0):
        raise ValueError(
            f"{scheduler} of this configuration moves the noise levels to {found.tolist()}; "
            "switch its shift, and its karras, exponential or beta sigmas, off"
        )
    return arguments


def _of_training(grid: Tensor, alphas_cumprod: Tensor, scheduler: str) -> dict[str, list]:
    """Returns a diffusion scheduler's arguments, from the products of alpha^2 (n,) at the n timesteps of training."""
    trained = ((1 - alphas_cumprod) / alphas_cumprod).sqrt().numpy()
    low, high, inner = trained[0] * (1 - TOLERANCE), trained[-1] * (1 + TOLERANCE), grid[:-1].numpy()
    if inner[0] > high or inner[-1] < low:
        raise ValueError(
            f"{scheduler} knows noise levels from {trained[-1]:.4g} to {trained[0]:.4g}, got {inner[0]:.4g} to "
            f"{inner[-1]:.4g}; give the configuration of the scheduler that the model was trained with"
        )
    if scheduler == "EulerDiscreteScheduler":
        return {"sigmas": grid.tolist()}
    places = np.arange(len(trained))
    if scheduler == "HeunDiscreteScheduler":
        return {
            "timesteps": np.interp(inner, trained, places).tolist()
        }  # the inverse of what it does with them
    timesteps = np.interp(np.log(inner), np.log(trained), places).round().astype(int).tolist()
    if len(set(timesteps)) < len(timesteps):
        raise ValueError(
            f"{scheduler} takes whole timesteps, and two of {len(timesteps)} fall on one; use fewer"
        )
    return {"timesteps": timesteps}
