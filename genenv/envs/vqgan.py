"""VQGAN: tokens in raster order, one after the other (Esser et al. 2021), with a schedule over the rows."""

from __future__ import annotations

import torch

from genenv.envs.raster_ar import RasterSampler, Settings, sampler_of

PARTS = ("vqgan", "vq")
"""Networks of a backbone."""

PUBLISHED = Settings(guidance_weight=0.25, top_k=600, top_p=0.92, token_temperature=1.0)
"""Those of the released command for ImageNet, and a guidance weight of our own: VQGAN is older than classifier-free
guidance. On the digits 0.25 had the lowest FID among 0.25, 0.5, 1, 1.5, 2 and 3, on images of the tuning stream."""


def make_sampler(
    backbone: str,
    num_steps: int | None,
    device: torch.device | str,
    dtype: torch.dtype,
    needs_features: bool,
    compile: bool,
    tokens_per_decision: int | None = None,
    guidance_weight: float | None = None,
    top_k: float | None = None,
    top_p: float | None = None,
    token_temperature: float | None = None,
) -> RasterSampler:
    """Returns VQGAN's sampler of a named backbone; for the last four settings see `genenv.envs.raster_ar.schedule`."""
    return sampler_of(
        "vqgan",
        backbone,
        num_steps,
        device,
        dtype,
        needs_features,
        compile,
        tokens_per_decision,
        Settings(guidance_weight, top_k, top_p, token_temperature),
        PUBLISHED,
    )
