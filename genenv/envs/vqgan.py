"""VQGAN: tokens in raster order, one after the other (Esser et al. 2021), with a schedule over the rows."""

from __future__ import annotations

import functools

from genenv.envs.raster_ar import Settings, sampler_of

PARTS = ("vqgan", "vq")
"""Networks of a backbone."""

USUAL = Settings(guidance_weight=0.25, top_k=600, top_p=0.92, token_temperature=1.0)
"""Filters and temperature of the released command for ImageNet, and a guidance weight of our own: VQGAN is older than
classifier-free guidance. On the digits it does better without; 0.25 is a weight that a unit action still moves, which
it does not do from 0."""


make_sampler = functools.partial(sampler_of, "vqgan", USUAL)
"""(backbone, num_steps, ...) -> VQGAN's sampler; see `genenv.envs.raster_ar.sampler_of`."""
