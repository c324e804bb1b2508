"""Sampling by an ODE, with AdaGen's two schedule parameters: what DiT and SiT share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from genenv.actions import Schedule, ScheduleActions
from genenv.conditions import Condition, Labels, both
from genenv.fields import feature_field, latent_field, limit_latents, shown_features
from genenv.grids import named
from genenv.protocols import Context, Observation
from genenv.rng import BatchRng, Purpose
from genenv.schedules import POSITIVE, UNIT, ScheduleParam, constant, residual_margins, setting
from genenv.solvers import MIN_STEP, SOLVERS, Evaluation, NoisePath, PathDenoiser, Solver, noise_levels
from genenv.tiers import load_part, parts_of, schedule_settings

DATA_LEVEL = 1e-6
"""The noise level at which the last time of a grid stands, for 0: times lie inside (0, 1)."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the network says of the latents at their time."""

    conditional: Tensor  # (N, C, h, w) noise or velocity
    unconditional: Tensor | None  # (N, C, h, w); None where guidance is not wanted
    features: Tensor  # (N, L, D) of the conditional half


@dataclasses.dataclass(frozen=True)
class ODEState:
    """Latents between two decisions.

    Attributes:
        latents: (N, C, h, w) float32, where the next evaluation takes place.
        time: (N,) float64, of the latents.
        context: (N,) int64.
        step: decisions taken.
        calls: (N,) int64, network evaluations spent on each image, guidance counted.
        memory: the evaluation that the solver remembers.
        prediction: of the latents; None until it is needed.
    """

    latents: Tensor
    time: Tensor
    context: Context
    step: int
    calls: Tensor
    memory: Evaluation | None
    prediction: Prediction | None


class Diffusion:
    """A network on a path between noise and data: what it predicts of latents, under guidance.

    Args:
        network: (latents (M, C, h, w), times (M,), condition (M, ...)) -> output (M, C, h, w), features (M, L, D).
        decoder: latents (N, C, h, w) -> images (N, C', H, W) in [0, 1].
        path: between noise and data.
        latent_shape: (C, h, w).
        num_tokens: L.
        feature_dim: D.
        condition: what the network is given for a context, and for none.
        image_shape: (C', H, W).
        guided_channels: guidance acts on this many of the first channels.
        time_scale: the network's times over the path's.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
        decoder: Callable[[Tensor], Tensor],
        path: NoisePath,
        *,
        latent_shape: tuple[int, int, int],
        num_tokens: int,
        feature_dim: int,
        condition: Condition,
        image_shape: tuple[int, int, int],
        guided_channels: int,
        time_scale: float = 1.0,
    ):
        self.network, self.decoder, self.path = network, decoder, path
        self.condition, self.image_shape = condition, image_shape
        self.guided_channels, self.time_scale = guided_channels, time_scale
        self.fields = {
            "latents": latent_field(latent_shape),
            "features": feature_field(num_tokens, feature_dim),
        }

    @property
    def num_contexts(self) -> int:
        """How many contexts the network knows."""
        return self.condition.num_contexts

    def noise(self, rng: BatchRng) -> Tensor:
        """Returns the noise (N, C, h, w) float32 that images start from."""
        return rng.at(0).normal(*self.fields["latents"].shape, purpose=Purpose.START).float()

    def guided(self, prediction: Prediction, weight: Tensor) -> Tensor:
        """Returns the output (N, C, h, w) under classifier-free guidance with weights (N,)."""
        output = prediction.conditional.float()
        if prediction.unconditional is None:
            return output
        difference = output - prediction.unconditional.float()
        difference[:, self.guided_channels :] = 0
        return output + weight.float()[:, None, None, None] * difference

    def denoise(
        self, latents: Tensor, time: Tensor, context: Context, weight: Tensor | None = None
    ) -> Tensor:
        """Returns the data (N, C, h, w) that the network expects behind noisy latents, with gradients to its weights.

        Without guidance that is the mean E[data | latents] of a network that was trained well.

        Args:
            latents: (N, C, h, w).
            time: (N,) float64, of the path.
            context: (N,).
            weight: guidance weights (N,); None for none.
        """
        return self.path.data(latents, time, self._output(latents, time, context, weight))

    def denoiser(self, context: Context, weight: Tensor | None = None) -> PathDenoiser:
        """Returns D(x; sigma) for contexts (N,) and guidance weights (N,), at x = data + sigma noise."""
        return PathDenoiser(self.path, lambda latents, time: self._output(latents, time, context, weight))

    def predict(self, latents: Tensor, time: Tensor, context: Context, guided: bool) -> Prediction:
        """Returns what the network says at times (N,) of the path: one call, of 2N rows where guided."""
        number, time = len(latents), (self.time_scale * time).float()
        condition = self.condition.given(context)
        if guided:
            latents, time = latents.repeat(2, 1, 1, 1), time.repeat(2)
            condition = both(self.condition, context)
        output, features = self.network(latents, time, condition)
        return Prediction(output[:number], output[number:] if guided else None, features[:number])

    def _output(self, latents: Tensor, time: Tensor, context: Context, weight: Tensor | None) -> Tensor:
        """Returns what the network says (N, C, h, w) at times (N,), guided by weights (N,) that are not None."""
        prediction = self.predict(latents, time, context, guided=weight is not None)
        return prediction.conditional.float() if weight is None else self.guided(prediction, weight)


class ODESampler(Diffusion):
    """Takes noise to an image in T decisions.

    Decision 0 sets the time that the noise is taken to be at; its guidance weight has no effect. Each later one
    guides the evaluation at hand, f = c + w (c - u), and sets the time of the next (methods of AdaGen's released code).
    Times are limited for each image: they never turn back, and end short of the data. Latents are limited to +-1e4,
    which only absurd guidance reaches, so that networks in half precision survive it.

    Args:
        network, decoder, path: see `Diffusion`.
        solver: the rule of the steps.
        params: time, guidance_weight.
        last_solver: the rule of the last decision, where it is another: Euler's, to reach the data themselves.
        needs_features: predict before each decision, so that a policy can see the features. Otherwise the
            prediction waits for the guidance weight, and its unconditional half is left out where all weights are 0.
        diffusion: the other arguments of `Diffusion`.
    """

    stochastic = False

    def __init__(
        self,
        network: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
        decoder: Callable[[Tensor], Tensor],
        path: NoisePath,
        solver: Solver,
        params: Sequence[ScheduleParam],
        *,
        last_solver: Solver | None = None,
        needs_features: bool = False,
        **diffusion: Any,
    ):
        super().__init__(network, decoder, path, **diffusion)
        self.solver, self.last_solver = solver, last_solver or solver
        self.params, self.horizon = tuple(params), len(params[0].static)
        self.needs_features = needs_features

    def actions(self, mode: str, device: torch.device) -> ScheduleActions:
        """Returns how actions become times and guidance weights."""
        return ScheduleActions(self.params, mode, device)

    def start(self, context: Context, rng: BatchRng) -> ODEState:
        """Returns standard normal noise."""
        return self.begin(context, self.noise(rng))

    def begin(self, context: Context, noise: Tensor) -> ODEState:
        """Returns the state before the first decision with given noise (N, C, h, w)."""
        time = torch.full(context.shape, self.path.noise_time, dtype=torch.float64, device=context.device)
        return ODEState(noise, time, context, 0, torch.zeros_like(context), None, None)

    def observe(self, state: ODEState, names: Sequence[str]) -> Observation:
        """Returns latents (N, C, h, w) and features (N, L, D), these 0 before the first decision and after the last."""
        fields = {}
        if "latents" in names:
            fields["latents"] = state.latents
        if "features" in names:
            if state.prediction is None:
                fields["features"] = self.fields["features"].zeros(len(state.latents), state.latents.device)
            else:
                fields["features"] = shown_features(state.prediction.features)
        return fields

    def advance(self, state: ODEState, params: Schedule, rng: BatchRng) -> ODEState:
        """Returns the latents after one decision with per-image parameters {name: (N,)}; nothing is drawn."""
        time = params["time"].double()
        if state.step == 0:
            state = dataclasses.replace(state, time=self.path.limit(time))
        else:
            time = self.path.limit(time, state.time)
            for _ in range(self.rule(state.step).per_decision):
                state = self._solve(state, params["guidance_weight"], time)
        state = dataclasses.replace(state, step=state.step + 1)
        if self.needs_features and state.step < self.horizon:
            state = self._predict(state, guided=True)
        return state

    def rule(self, step: int) -> Solver:
        """Returns the rule of a decision."""
        return self.last_solver if step == self.horizon - 1 else self.solver

    def decode(self, state: ODEState) -> Tensor:
        """Returns images (N, C', H, W) of the latents as they are, noise included."""
        return self.decoder(state.latents).float()

    def undecided(self, state: ODEState) -> Tensor:
        """Returns the noise level sigma at every place, (N, h, w)."""
        n, _, height, width = state.latents.shape
        return self.path.sigma(state.time).float()[:, None, None].expand(n, height, width)

    def diagnostics(self, state: ODEState) -> dict[str, Tensor]:
        """Returns the network evaluations so far, and the time of the latents after the limits."""
        return {"nfe": state.calls, "time": state.time.float()}

    def _solve(self, state: ODEState, weight: Tensor, time: Tensor) -> ODEState:
        """Returns the state after one solver evaluation on the way to `time`."""
        if state.prediction is None:
            state = self._predict(state, guided=bool((weight != 0).any()))
        assert state.prediction is not None
        now = Evaluation(state.latents, state.time, self.guided(state.prediction, weight))
        latents, memory = self.rule(state.step).step(self.path, now, state.memory, time)
        return dataclasses.replace(
            state, latents=limit_latents(latents), time=time, memory=memory, prediction=None
        )

    def _predict(self, state: ODEState, guided: bool) -> ODEState:
        """Returns the state with the network's prediction."""
        prediction = self.predict(state.latents, state.time, state.context, guided)
        return dataclasses.replace(state, calls=state.calls + 1 + guided, prediction=prediction)


def pixels(latents: Tensor) -> Tensor:
    """Returns images in [0, 1] of latents that are the pixels themselves, in [-1, 1]."""
    return ((latents + 1) / 2).clamp(0, 1)


def num_decisions(solver: str, num_steps: int | None) -> int:
    """Returns T for a number of solver evaluations of each image, by default 16.

    A solver evaluation is what the solver asks once: one network evaluation or, with guidance, two.

    Raises:
        ValueError: if there is no such solver, or it cannot take that number of steps.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    num_steps, rule = 16 if num_steps is None else num_steps, SOLVERS[solver]
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if num_steps % rule.per_update:
        raise ValueError(
            f"solver {solver!r} takes an even num_steps, got {num_steps}; "
            f"use {num_steps + 1}, or solver='euler' or 'dpmpp2m'"
        )
    return num_steps // rule.per_decision + 1


def evenly_spaced(
    first: float, last: float, horizon: int, guidance_weight: float | None, default: float
) -> tuple[ScheduleParam, ...]:
    """Returns AdaGen's parameters with times evenly spaced from `first` to `last` and constant guidance.

    Raises:
        ValueError: if the guidance weight is not a finite number of at least 0.
    """
    guidance_weight = setting("guidance_weight", guidance_weight, default, POSITIVE)
    times = torch.linspace(first, last, horizon, dtype=torch.float64)
    return (
        ScheduleParam("time", UNIT, times, span=1.0),
        ScheduleParam("guidance_weight", POSITIVE, constant(guidance_weight, horizon), span=2.0),
    )


Grid = str | Sequence[float]
"""The name of a hand-made grid in `genenv.grids.GRIDS`, or its K+1 noise levels."""


def on_grid(
    path: NoisePath, params: Sequence[ScheduleParam], grid: Grid
) -> tuple[NoisePath, tuple[ScheduleParam, ...]]:
    """Returns a path and parameters whose hand-crafted times stand at the levels of a grid, the last at the data.

    Times may then be as close together as the grid has them. A named grid has its sigma_max and sigma_min where the
    given times begin and end.

    Raises:
        ValueError: if there is no such grid, or its levels do not fall to 0, are not one for each decision, or reach
            pure noise.
    """
    time, *others = params
    steps = len(time.static) - 1
    if isinstance(grid, str):
        first, last = path.noise_level(time.static[[0, -1]]).tolist()
        levels = named(grid, steps, first, last)
    else:
        levels = noise_levels(grid)
    if len(levels) != steps + 1:
        raise ValueError(f"grid must have {steps + 1} noise levels for {steps} steps, got {len(levels)}")
    highest = path.noise_level(torch.tensor(path.noise_time, dtype=torch.float64)).item()
    if levels[0] >= highest:
        raise ValueError(
            f"grid must start below the noise level {highest:.1f} of pure noise, got {levels[0]:g}"
        )
    times = path.time_of(levels.clamp(min=DATA_LEVEL))
    path = dataclasses.replace(path, data_time=times[-1].item(), min_step=0.0)
    return path, (dataclasses.replace(time, static=times), *others)


def make_ode_sampler(
    part: str,
    backbone: str,
    path: NoisePath,
    solver: str,
    num_steps: int | None,
    schedule_params: Callable[[int, float | None], tuple[ScheduleParam, ...]],
    guidance_weight: float | None,
    grid: Grid | None,
    schedule: str | None,
    device: torch.device | str,
    dtype: torch.dtype,
    compile: bool,
    **kwargs: Any,
) -> ODESampler:
    """Returns the sampler of a named backbone's network `part`, on pixels or on the latents of its autoencoder.

    Its hand-crafted schedule is `schedule_params` of the number of decisions and the guidance weight. With a grid its
    times are those of the grid, and its last decision is Euler's, as in `genenv.solvers.sample`.
    """
    settings = schedule_settings(backbone, part, schedule, guidance_weight=guidance_weight, grid=grid)
    params, grid = (
        schedule_params(num_decisions(solver, num_steps), settings["guidance_weight"]),
        settings["grid"],
    )
    params = residual_margins(params, schedule)
    changes = params[0].static.diff().abs()
    room = round(changes.sum().item() / MIN_STEP)
    if grid is not None:
        path, params = on_grid(path, params, grid)
        kwargs["last_solver"] = SOLVERS["euler"]
    elif len(changes) > room:
        raise ValueError(
            f"num_steps must be at most {room * SOLVERS[solver].per_decision} for solver {solver!r}: "
            f"each decision moves the time by at least {MIN_STEP}"
        )
    transformer = load_part(part, backbone).to(device, dtype)
    channels, side, _ = transformer.latent_shape
    decoder, image_shape, guided_channels = pixels, transformer.latent_shape, channels
    if "vae" in parts_of(backbone):
        autoencoder = load_part("vae", backbone).to(device)
        side *= autoencoder.downsampling
        decoder, image_shape = autoencoder.decode, (autoencoder.image_channels, side, side)
        guided_channels = 3  # of 4, as the released code does
    return ODESampler(
        torch.compile(transformer) if compile else transformer,
        decoder,
        path,
        SOLVERS[solver],
        params,
        latent_shape=transformer.latent_shape,
        num_tokens=transformer.grid_size**2,
        feature_dim=transformer.embed_dim,
        condition=Labels(transformer.num_classes),
        image_shape=image_shape,
        guided_channels=guided_channels,
        **kwargs,
    )
