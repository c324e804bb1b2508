"""The diffusion clock of a mixture of Gaussians, whose score is exact: ART's test bed (arXiv 2601.18681, sec. 4.1)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from genenv.envs.clock import ClockSampler, ClockState, ProbabilityFlow
from genenv.models.gaussian_mixture import MIXTURES, GaussianMixture, load_mixture, picture
from genenv.protocols import Context
from genenv.rng import BatchRng, Purpose

SPREADS = 3.0
"""The first noise level over the root mean square of the data."""
SIGMA_MIN = 1e-3
"""The least noise level over the first."""


@dataclasses.dataclass(frozen=True)
class ExactDenoiser:
    """D(x; sigma) of a mixture."""

    mixture: GaussianMixture

    def __call__(self, x: Tensor, sigma: Tensor, context: Context) -> Tensor:
        """Returns the data (N, d) expected behind points (N, d) at noise levels (N,)."""
        return self.mixture.denoise(x, sigma)


@dataclasses.dataclass(frozen=True)
class Marginal:
    """Exact points of data + sigma noise, (N, d) float64."""

    mixture: GaussianMixture
    sigma: float

    def __call__(self, context: Context, rng: BatchRng) -> Tensor:
        """Returns a point for each context (N,)."""
        uniform = rng.at(0).uniform(1 + self.mixture.dim, purpose=Purpose.START)
        return self.mixture.points(uniform, self.sigma)


class PointSampler(ClockSampler):
    """A clock of points, whose coordinates are told."""

    def diagnostics(self, state: ClockState) -> dict[str, Tensor]:
        """Returns those of the clock, and the point's coordinates "x0", "x1" ... after the last decision."""
        coordinates = {f"x{i}": x.float() for i, x in enumerate(state.latents.unbind(1))}
        return super().diagnostics(state) | coordinates


def backbones() -> list[str]:
    """Returns the names of the mixtures."""
    return list(MIXTURES)


def make_sampler(
    backbone: str,
    num_steps: int | None,
    device: torch.device | str,
    dtype: torch.dtype,
    needs_features: bool,
    compile: bool,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    budget: str = "projection",
    derivative: str = "jvp",
) -> PointSampler:
    """Returns the clock of a mixture: "normal", "mixture-1d", "pair-1d", "mixture-2d" or "module:factory".

    There is no network: `dtype` and `compile` change nothing, and points are float64.

    Args:
        backbone: the mixture.
        num_steps: decisions K, by default 10.
        device: where the points are.
        dtype: of a network.
        needs_features: they are known anyway.
        compile: of a network.
        sigma_max: the first noise level T, by default 3 times the root mean square of the data: the paper's 3 of
            "normal".
        sigma_min: the score is asked for at no level below, by default a thousandth of the first.
        budget: "projection" or "multiplier".
        derivative: "jvp" or "finite-difference".

    Raises:
        ValueError: if there is no such mixture, or a value is not legal.
    """
    mixture = load_mixture(backbone)
    highest = SPREADS * mixture.spread if sigma_max is None else float(sigma_max)
    lowest = SIGMA_MIN * highest if sigma_min is None else float(sigma_min)
    return PointSampler(
        ProbabilityFlow(ExactDenoiser(mixture), highest, lowest, derivative),
        Marginal(mixture, highest),
        picture(mixture),
        10 if num_steps is None else num_steps,
        budget,
        name="point",
        shape=(mixture.dim,),
        num_contexts=1,
        image_shape=(1, 1, mixture.dim),
    )
