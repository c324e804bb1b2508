"""One step of stochastic sampling: the Gaussian from which the latents at the next time are drawn.

Along a path latents are x = alpha D + sigma E, data D and noise E; times are (N,) float64.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from genenv.solvers import LinearPath, NoisePath, per_image


@dataclasses.dataclass(frozen=True)
class Transition(ABC):
    """From latents at one time to those at the next.

    Attributes:
        path: between noise and data.
        eta: strength of the noise, above 0: without noise no latents have a density.

    Raises:
        ValueError: if eta is not of the transition's range, or the path not one of its own.
    """

    path: NoisePath
    eta: float
    usual: ClassVar[float]
    most: ClassVar[float]

    def __post_init__(self):
        if not 0 < self.eta <= self.most:
            raise ValueError(
                f"eta must be above 0, where no action has a density, and at most {self.most:g}, got {self.eta}"
            )

    @abstractmethod
    def gaussian(
        self, latents: Tensor, data: Tensor, time: Tensor, following: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the mean (N, ...) and the standard deviation (N,) of the latents at the following time.

        Args:
            latents: (N, ...) at the time.
            data: (N, ...) that the network expects behind them.
            time: (N,).
            following: (N,), nearer to the data.
        """

    def _noise(self, latents: Tensor, data: Tensor, time: Tensor) -> Tensor:
        """Returns E."""
        rest = latents - per_image(self.path.alpha(time), latents) * data
        return rest / per_image(self.path.sigma(time), latents)


class DDIM(Transition):
    """DDIM's transition (Song et al. 2021, eq. 12 and 16), on any path.

    With eta = 1 it is DDPM's posterior q(x_s | x_t, D), whose variance is sigma_s^2 (1 - SNR_t / SNR_s).
    """

    usual = most = 1.0

    def gaussian(
        self, latents: Tensor, data: Tensor, time: Tensor, following: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns alpha_s D + sqrt(sigma_s^2 - v^2) E, and v = eta sigma_s sqrt(1 - SNR_t / SNR_s)."""
        path, sigma = self.path, self.path.sigma(following)
        std = self.eta * sigma * (-torch.expm1(2 * (path.log_snr(time) - path.log_snr(following)))).sqrt()
        rest = (sigma**2 - std**2).clamp(min=0).sqrt()
        mean = per_image(path.alpha(following), latents) * data
        return mean + per_image(rest, latents) * self._noise(latents, data, time), std


class FlowSDE(Transition):
    """An Euler step of the straight path's stochastic twin (Flow-GRPO, arXiv 2505.05470, eq. 9).

    With noise of the strength eta sqrt(sigma / alpha), the marginals are those of the flow in the limit of small steps.
    """

    usual, most = 0.7, 1e3

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.path, LinearPath):
            raise ValueError(
                f"transition 'flow-sde' is that of the straight path, got {type(self.path).__name__}; use 'ddim'"
            )

    def gaussian(
        self, latents: Tensor, data: Tensor, time: Tensor, following: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns x + (D - E - eta^2 / (2 alpha) E) dt, and eta sqrt(sigma / alpha dt)."""
        noise, step = self._noise(latents, data, time), following - time
        pull = self.eta**2 / (2 * self.path.alpha(time))
        drift = data - noise - per_image(pull, latents) * noise
        std = self.eta * (self.path.sigma(time) / self.path.alpha(time) * step).sqrt()
        return latents + per_image(step, latents) * drift, std


TRANSITIONS: dict[str, type[Transition]] = {"ddim": DDIM, "flow-sde": FlowSDE}
"""By the name of the keyword argument `transition`."""
