"""SiT: a flow-matching transformer (Ma et al. 2024) sampled by its ODE."""

from __future__ import annotations

import torch

from genenv.envs.ode import Grid, ODESampler, evenly_spaced, make_ode_sampler
from genenv.schedules import ScheduleParam
from genenv.solvers import LinearPath

PARTS = ("sit",)
"""Networks of a backbone; one on latents has a "vae" besides."""


def schedule_params(horizon: int, guidance_weight: float | None = None) -> tuple[ScheduleParam, ...]:
    """Returns AdaGen's parameters with SiT's hand-crafted schedule: times evenly spaced, constant guidance of 1.5."""
    return evenly_spaced(0.01, 0.99, horizon, guidance_weight, default=1.5)


def make_sampler(
    backbone: str,
    num_steps: int | None,
    device: torch.device | str,
    dtype: torch.dtype,
    needs_features: bool,
    compile: bool,
    solver: str = "dpm2s",
    guidance_weight: float | None = None,
    grid: Grid | None = None,
    schedule: str | None = None,
) -> ODESampler:
    """Returns the SiT sampler of a named backbone; `num_steps` counts solver evaluations.

    A `grid` sets its hand-crafted times. Where the settings of that schedule come from: see
    `genenv.tiers.schedule_settings`.
    """
    return make_ode_sampler(
        "sit",
        backbone,
        LinearPath(),
        solver,
        num_steps,
        schedule_params,
        guidance_weight,
        grid,
        schedule,
        device,
        dtype,
        compile,
        needs_features=needs_features,
    )
