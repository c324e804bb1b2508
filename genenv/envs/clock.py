"""The speed of the diffusion clock as the action (ART, arXiv 2601.18681), for any denoiser.

Latents are x = data + sigma noise (EDM's variables). A clock t runs evenly from 0 to T = sigma_max in K decisions, the
noise level is sigma = T - psi(t), and the action theta = d psi / d t says how fast the noise falls:

    dx/dt = theta F(x, psi),   d psi/dt = theta,   F(x, psi) = (D(x; sigma) - x) / sigma     (paper, sec. 2)

An Euler step of length dt errs by theta^2 |Q| dt^2 / 2 to leading order, with Q = dF/d psi along the flow (eq. 8), so
|Q| theta^2 dt is what a decision costs. A uniform grid of the learned clock is an adaptive grid of noise levels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genenv.actions import Schedule, ScheduleActions
from genenv.envs import diffusion, flow
from genenv.envs.ode import ODESampler, pixels
from genenv.fields import LATENT_LIMIT, Field, feature_field, latent_field, limit_latents, shown_features
from genenv.grids import ClosedForm, measured_closed_form
from genenv.models.unet import load_unet
from genenv.protocols import Context, Observation, Sampler
from genenv.rng import BatchRng, Purpose
from genenv.schedules import REAL, ScheduleParam, constant, constant_guidance, scaled_unit
from genenv.solvers import directional_derivative, per_image, reverse_flow
from genenv.tiers import PUBLISHED, backbones_with_any, choose_part, tier_of

NETWORKS = {"sit": flow.make_sampler, "dit": diffusion.make_sampler}
"""Networks that have a path, the preferred one first -> what makes their sampler."""
BUDGETS, DERIVATIVES = ("projection", "multiplier"), ("jvp", "finite-difference")
DIFFERENCE = 0.01
"""Step of a finite difference, over the noise level."""
SMALLEST_NORM = 1e-6
"""|Q| that its logarithm is taken of, at least."""

Denoiser = Callable[[Tensor, Tensor, Context], Tensor]
"""D(x; sigma): (x (N, ...), sigma (N,) float64, contexts (N,)) -> the data (N, ...) expected behind x."""


class ProbabilityFlow:
    """F(x, psi) = (D(x; sigma) - x) / sigma at sigma = T - psi, and Q = dF/d psi along the flow (paper, eq. 8).

    Q = (grad_x F) F + dF/d psi is one product of the Jacobian with (F, 1), in forward mode. The network is asked about
    no level below `sigma_min`, wherever psi is.

    Args:
        denoiser: D.
        sigma_max: T.
        sigma_min: the smallest noise level that the network knows.
        derivative: "jvp", or "finite-difference" for networks without forward mode: one more call, about 1 % off.

    Raises:
        ValueError: if the noise levels are not 0 < sigma_min < sigma_max, or there is no such derivative.
    """

    def __init__(self, denoiser: Denoiser, sigma_max: float, sigma_min: float, derivative: str = "jvp"):
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(
                f"noise levels must be 0 < sigma_min < sigma_max, got sigma_min={sigma_min}, sigma_max={sigma_max}"
            )
        if derivative not in DERIVATIVES:
            raise ValueError(f"derivative must be one of {', '.join(DERIVATIVES)}, got {derivative!r}")
        self.denoiser, self.derivative = denoiser, derivative
        self.sigma_max, self.sigma_min = float(sigma_max), float(sigma_min)

    def sigma(self, psi: Tensor) -> Tensor:
        """Returns the noise levels (N,) at diffusion times psi (N,); of those outside [0, T] the nearest one's."""
        sigma = self.sigma_max - psi
        sigma = torch.where(psi < 0, self.sigma_max, sigma)  # not clamp: at psi = 0 there is a derivative
        return torch.where(sigma < self.sigma_min, self.sigma_min, sigma)

    def slope(self, x: Tensor, psi: Tensor, context: Context) -> Tensor:
        """Returns F (N, ...) at x (N, ...) and psi (N,)."""
        return reverse_flow(lambda x, sigma: self.denoiser(x, sigma, context), x, self.sigma(psi))

    def __call__(self, x: Tensor, psi: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Returns F and Q, both (N, ...), at x (N, ...) and psi (N,)."""
        slope = self.slope(x, psi, context)
        if self.derivative == "jvp":
            along = (slope, torch.ones_like(psi))
            return slope, directional_derivative(lambda x, psi: self.slope(x, psi, context), (x, psi), along)
        step = DIFFERENCE * self.sigma(psi)
        ahead = self.slope(x + per_image(step, x) * slope, psi + step, context)
        return slope, (ahead - slope) / per_image(step, x)


@dataclasses.dataclass(frozen=True)
class Slope:
    """What is known of the flow at some latents."""

    slope: Tensor  # (N, ...) F
    slope_norm: Tensor  # (N,) |F|
    derivative_norm: Tensor  # (N,) |Q|
    size: Tensor  # (N,) root mean square of the latents, |x| / sqrt(d)


@dataclasses.dataclass(frozen=True)
class ClockState:
    """Latents between two decisions.

    Attributes:
        latents: (N, ...), x = data + sigma noise.
        psi: (N,) float64, diffusion time used: sigma_max less the noise level.
        context: (N,) int64.
        step: decisions taken.
        before: the flow where the last decision was taken; at the start, where the first one will be.
        now: the flow at the latents; None after the last decision.
        cost: (N,) of the last decision, |Q| theta^2 dt.
        secant_cost: (N,) likewise, with the mean of Q over the whole decision for Q at its start.
    """

    latents: Tensor
    psi: Tensor
    context: Context
    step: int
    before: Slope
    now: Slope | None
    cost: Tensor
    secant_cost: Tensor


class ClockSampler:
    """Takes noise to data in K Euler steps, evenly spaced on the clock.

    Budget "projection": theta is positive, and a decision uses what is left of psi at most, the last one all of it, so
    that psi(T) = T whatever the actions are. "multiplier": theta is any real number and psi(T) what comes out, as
    published; the constraint is then the agent's affair.

    Args:
        flow: (x (N, ...), psi (N,), contexts (N,)) -> F and Q.
        noise: (contexts (N,), rng) -> x (N, ...) at the noise level T.
        decoder: x (N, ...) -> images (N, C, H, W) in [0, 1].
        horizon: decisions K.
        budget: "projection" or "multiplier".
        name: of the latents in observations.
        shape: of the latents of one image.
        num_contexts: what there is to show.
        image_shape: (C, H, W).
        calls: network calls for each F.

    Raises:
        ValueError: if there is no such budget, or less than one decision.
    """

    stochastic = False

    def __init__(
        self,
        flow: ProbabilityFlow,
        noise: Callable[[Context, BatchRng], Tensor],
        decoder: Callable[[Tensor], Tensor],
        horizon: int,
        budget: str,
        *,
        name: str,
        shape: tuple[int, ...],
        num_contexts: int,
        image_shape: tuple[int, int, int],
        calls: int = 1,
    ):
        if budget not in BUDGETS:
            raise ValueError(f"budget must be one of {', '.join(BUDGETS)}, got {budget!r}")
        if horizon < 1:
            raise ValueError(f"num_steps must be at least 1, got {horizon}")
        self.flow, self.noise, self.decoder = flow, noise, decoder
        self.horizon, self.budget, self.name, self.calls = horizon, budget, name, calls
        self.num_contexts, self.image_shape = num_contexts, image_shape
        # all of psi in one decision is theta = K
        link, span = (REAL, 1.0) if budget == "multiplier" else (scaled_unit(horizon + 1.0), 2.0)
        self.params = (ScheduleParam("clock_speed", link, constant(1.0, horizon), span),)
        self.fields = {
            name: latent_field(shape),
            "psi": Field((1,), torch.float32, -LATENT_LIMIT, LATENT_LIMIT),
            "clock": Field((1,), torch.float32, 0.0, self.period),
            "features": feature_field(1, 3),
        }

    @property
    def period(self) -> float:
        """The clock's last time T, which is the first noise level."""
        return self.flow.sigma_max

    @property
    def time_step(self) -> float:
        """The clock's time dt between two decisions."""
        return self.period / self.horizon

    def denoiser(self, context: Context) -> Callable[[Tensor, Tensor], Tensor]:
        """Returns D(x; sigma) for contexts (N,), for any grid: the network is asked about no level below its least."""
        flow = self.flow
        return lambda x, sigma: flow.denoiser(x, sigma.clamp(min=flow.sigma_min), context)

    def closed_form(self, context: Context, rng: BatchRng) -> ClosedForm:
        """Returns `genenv.grids.measured_closed_form`, on the way of images (N)."""
        flow = self.flow
        difference = None if flow.derivative == "jvp" else DIFFERENCE
        x = self.noise(context, rng)
        return measured_closed_form(self.denoiser(context), x, flow.sigma_max, flow.sigma_min, difference)

    def actions(self, mode: str, device: torch.device) -> ScheduleActions:
        """Returns how actions become speeds."""
        return ScheduleActions(self.params, mode, device)

    def start(self, context: Context, rng: BatchRng) -> ClockState:
        """Returns noise, and the flow there."""
        psi = torch.zeros(context.shape, dtype=torch.float64, device=context.device)
        latents = self.noise(context, rng)
        now = self._look(latents, psi, context)
        nothing = torch.zeros_like(now.size)
        return ClockState(latents, psi, context, 0, now, now, nothing, nothing)

    def observe(self, state: ClockState, names: Sequence[str]) -> Observation:
        """Returns the latents, psi (N, 1), the clock (N, 1), and features (N, 1, 3): log |Q|, |F|, |x| / sqrt(d).

        The features are 0 after the last decision.
        """
        fields = {}
        if self.name in names:
            fields[self.name] = limit_latents(state.latents.float())
        if "psi" in names:
            fields["psi"] = limit_latents(state.psi.float())[:, None]
        if "clock" in names:
            fields["clock"] = torch.full_like(state.psi, state.step * self.time_step).float()[:, None]
        if "features" in names:
            fields["features"] = self.fields["features"].zeros(len(state.psi), state.psi.device)
            if state.now is not None:
                now = state.now
                columns = [now.derivative_norm.clamp(min=SMALLEST_NORM).log(), now.slope_norm, now.size]
                fields["features"] = shown_features(torch.stack(columns, dim=-1)[:, None])
        return fields

    def advance(self, state: ClockState, params: Schedule, rng: BatchRng) -> ClockState:
        """Returns the latents after one decision with speeds {"clock_speed": (N,)}; nothing is drawn."""
        assert state.now is not None
        last = state.step + 1 == self.horizon
        step = params["clock_speed"] * self.time_step
        if self.budget == "projection":
            left = self.period - state.psi
            step = left if last else step.minimum(left)
        cost = state.now.derivative_norm * step.to(state.now.size.dtype).square() / self.time_step
        latents = limit_latents(state.latents + per_image(step, state.latents) * state.now.slope)
        psi = state.psi + step
        if last and self.budget == "projection":
            psi = torch.full_like(psi, self.period)  # not up to rounding
        now = None if last else self._look(latents, psi, state.context)
        after = self.flow.slope(latents, psi, state.context) if now is None else now.slope
        change = (after - state.now.slope).flatten(1).norm(dim=1)
        secant_cost = change * (step / self.time_step).abs().to(change.dtype)
        return ClockState(latents, psi, state.context, state.step + 1, state.now, now, cost, secant_cost)

    def decode(self, state: ClockState) -> Tensor:
        """Returns images (N, C, H, W) of the latents as they are, noise included."""
        return self.decoder(state.latents).float()

    def undecided(self, state: ClockState) -> Tensor:
        """Returns the noise level over the first one, (N, 1, 1)."""
        return (1 - state.psi / self.period).clamp(0, 1).float()[:, None, None]

    def diagnostics(self, state: ClockState) -> dict[str, Tensor]:
        """Returns the last decision's costs, |Q|, |F| and |x| / sqrt(d) where it was taken, and psi after it.

        "cost" is |Q| theta^2 dt with Q where the decision was taken, as published: right for short steps, but a long
        one from where |Q| is small to where it is large goes nearly free. "secant_cost" has the mean of Q over the
        step, the change of F over that of psi: |F_after - F_before| theta.

        "nfe" counts the network calls that sampling on this clock takes, guidance counted; the derivative Q, which only
        the cost and the features need, takes as many again, in forward mode.
        """
        return {
            "nfe": torch.full_like(state.context, state.step * self.calls),
            "psi": state.psi.float(),
            "cost": state.cost.float(),
            "secant_cost": state.secant_cost.float(),
            "derivative_norm": state.before.derivative_norm.float(),
            "slope_norm": state.before.slope_norm.float(),
            "latent_rms": state.before.size.float(),
        }

    def _look(self, latents: Tensor, psi: Tensor, context: Context) -> Slope:
        slope, derivative = self.flow(latents, psi, context)
        slope_norm, derivative_norm, size = (x.flatten(1).norm(dim=1) for x in (slope, derivative, latents))
        return Slope(slope, slope_norm, derivative_norm, size / math.sqrt(latents[0].numel()))


def as_clock(sampler: Sampler, env_id: str) -> ClockSampler:
    """Returns the sampler of an environment as the clock that it is.

    Raises:
        ValueError: if it is none, naming the environment's id.
    """
    if not isinstance(sampler, ClockSampler):
        raise ValueError(
            f"env_id must name an environment with a clock, got {env_id!r}; ART/Clock-v0 and "
            "ART/GaussianMixture-v0 have one"
        )
    return sampler


@dataclasses.dataclass(frozen=True)
class GuidedDenoiser:
    """D(x; sigma) of a network on a path, guided by a constant weight.

    Attributes:
        sampler: knows the network, its path and its guidance.
        guidance_weight: 0 for none.
    """

    sampler: ODESampler
    guidance_weight: float

    def __call__(self, x: Tensor, sigma: Tensor, context: Context) -> Tensor:
        """Returns the data (N, C, h, w) expected behind x (N, C, h, w) at noise levels (N,) float64."""
        weight = None if self.guidance_weight == 0 else torch.full_like(sigma, self.guidance_weight)
        return self.sampler.denoiser(context, weight)(x, sigma)


@dataclasses.dataclass(frozen=True)
class Noise:
    """Pure noise at a noise level, (N, *shape) float32."""

    shape: tuple[int, ...]
    sigma: float

    def __call__(self, context: Context, rng: BatchRng) -> Tensor:
        """Returns noise for contexts (N,)."""
        return (self.sigma * rng.at(0).normal(*self.shape, purpose=Purpose.START)).float()


def backbones() -> list[str]:
    """Returns the named backbones that have one of the networks."""
    return backbones_with_any(NETWORKS)


def make_sampler(
    backbone: str,
    num_steps: int | None,
    device: torch.device | str,
    dtype: torch.dtype,
    needs_features: bool,
    compile: bool,
    network: str | None = None,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    guidance_weight: float | None = None,
    budget: str = "projection",
    derivative: str = "jvp",
) -> ClockSampler:
    """Returns the clock of a named backbone's network, or of a `UNet2DModel` in a folder of diffusers' layout.

    Args:
        backbone: see `genenv.make.vector`.
        num_steps: decisions K, by default 8.
        device: where the network runs.
        dtype: of the network.
        needs_features: they are known anyway.
        compile: run the network through torch.compile.
        network: "sit" or "dit" of a backbone that has both, by default the first.
        sigma_max: the first noise level T; by default the tier's, less if the network does not know it.
        sigma_min: the network is asked about no level below; by default the tier's, or the least that it knows.
        guidance_weight: w of c + w (c - u), constant; 0, the default, for none.
        budget: "projection" or "multiplier".
        derivative: "jvp" or "finite-difference".

    Raises:
        ValueError: if a value is not legal, or the backbone has no such network.
    """
    weight = constant_guidance(guidance_weight)
    tier, steps = tier_of(backbone), 8 if num_steps is None else num_steps
    highest, lowest = tier.sigmas
    if "unet" in tier.folder_parts:
        if network is not None or weight:
            name = "network" if network is not None else "guidance_weight"
            raise ValueError(f"{name} must be left out for a UNet2DModel, got backbone {backbone!r}")
        unet = load_unet(backbone, dtype)
        known = (unet.path.levels[0].item(), unet.path.levels[-1].item())
        highest, lowest = min(highest, known[1]), max(lowest, known[0])
        unet.model.to(device)
        if compile:
            unet = dataclasses.replace(unet, model=torch.compile(unet.model))
        denoiser: Denoiser = unet
        shape, decoder, image_shape = unet.shape, pixels, unet.shape
        num_contexts, calls = unet.num_contexts, 1
    else:
        sampler = _network_sampler(backbone, network, device, dtype, compile)
        denoiser, calls = GuidedDenoiser(sampler, weight), 2 if weight else 1
        shape, decoder = sampler.fields["latents"].shape, sampler.decoder
        image_shape, num_contexts, known = sampler.image_shape, sampler.num_contexts, (0.0, math.inf)
    highest = highest if sigma_max is None else sigma_max
    lowest = lowest if sigma_min is None else sigma_min
    if not (known[0] <= lowest and highest <= known[1]):
        raise ValueError(
            f"noise levels must be those the network knows, {known[0]:.4g} to {known[1]:.4g}, "
            f"got sigma_min={lowest}, sigma_max={highest}"
        )
    return ClockSampler(
        ProbabilityFlow(denoiser, highest, lowest, derivative),
        Noise(shape, highest),
        decoder,
        steps,
        budget,
        name="latents",
        shape=shape,
        num_contexts=num_contexts,
        image_shape=image_shape,
        calls=calls,
    )


def _network_sampler(
    backbone: str, network: str | None, device: torch.device | str, dtype: torch.dtype, compile: bool
) -> ODESampler:
    """Returns the sampler that knows a backbone's network, its path and its guidance."""
    part = choose_part(backbone, network, NETWORKS, "network of a diffusion or a flow")
    return NETWORKS[part](backbone, None, device, dtype, False, compile, schedule=PUBLISHED)
