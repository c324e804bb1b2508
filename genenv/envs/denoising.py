"""Latents as actions: each decision is the image's next latent (as where diffusion models are tuned, AdaScope).

The frozen generator draws the next latents from a Gaussian, DDIM's or that of a flow's stochastic twin. An action is
the next latents themselves ("physical"), or how far they are from the mean, in standard deviations ("residual"): then
zeros are the generator's means, and standard normal numbers the generator.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from genenv.actions import Deviation, DeviationActions, LatentActions
from genenv.envs import diffusion, flow
from genenv.envs.ode import Diffusion, ODESampler
from genenv.fields import LATENT_LIMIT, Field, latent_field, limit_latents, shown_features
from genenv.pipelines import load_pipeline
from genenv.protocols import Context, Observation
from genenv.rng import BatchRng
from genenv.schedules import constant_guidance
from genenv.solvers import per_image
from genenv.tiers import PUBLISHED, backbones_with_any, choose_part, tier_of
from genenv.transitions import TRANSITIONS, Transition

NETWORKS: dict[str, tuple[Callable[..., ODESampler], str]] = {
    "dit": (diffusion.make_sampler, "ddim"),
    "sit": (flow.make_sampler, "flow-sde"),
}
"""Networks that have a path, the preferred one first -> what makes their sampler, and their usual transition: that of
DDPO (Black et al. 2024) and of Flow-GRPO (arXiv 2505.05470)."""
PIPELINES = ("stable-diffusion", "dit")
"""Tiers of pipelines in folders of diffusers."""
SMALLEST_STD = 1e-5
"""Least standard deviation, in latents of the scale of 1, of which float32 tells a density."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Where the next latents are drawn from, and what the network said.

    Attributes:
        mean: (N, C, h, w).
        std: (N,) float32, of every number.
        denoised: (N, C, h, w), the data that the network expects behind the latents.
        features: (N, L, D), its hidden states, of the conditional half.
    """

    mean: Tensor
    std: Tensor
    denoised: Tensor
    features: Tensor

    def log_prob(self, latents: Tensor) -> Tensor:
        """Returns the log-density of latents (N, C, h, w), per number: (N,) float32."""
        return log_density((latents - self.mean) / per_image(self.std, latents), self.std)

    def kl(self, other: Prediction) -> Tensor:
        """Returns KL(this || other), per number, of Gaussians with the same standard deviation: (N,) float32."""
        distance = (self.mean - other.mean) / per_image(self.std, self.mean)
        return distance.square().flatten(1).mean(1) / 2


def log_density(deviation: Tensor, std: Tensor) -> Tensor:
    """Returns the log-density of latents, per number, (N,).

    Args:
        deviation: (N, C, h, w) from their mean, in standard deviations.
        std: (N,).
    """
    return -deviation.square().flatten(1).mean(1) / 2 - std.log() - 0.5 * math.log(2 * math.pi)


@dataclasses.dataclass(frozen=True)
class DenoisingState:
    """Latents between two decisions.

    Attributes:
        latents: (N, C, h, w) float32.
        context: (N,) int64.
        step: decisions taken.
        calls: (N,) int64, network evaluations spent on each image, guidance counted.
        prediction: of the next latents; None until it is needed.
    """

    latents: Tensor
    context: Context
    step: int
    calls: Tensor
    prediction: Prediction | None


class DenoisingSampler:
    """Takes noise to an image in T decisions along fixed times, one network call each. Nothing is drawn.

    Args:
        generator: the network, its path and decoder. It starts from the same noise.
        times: (T + 1,) float64 of the path, from noise to data; each decision leads from one to the next.
        transition: from one time to the next, on the generator's path.
        guidance_weight: w of c + w (c - u), constant; 0 for none.
        looks_ahead: predict before each decision, so that an agent can see it.

    Raises:
        ValueError: if a decision leaves no room for noise.
    """

    stochastic = False

    def __init__(
        self,
        generator: Diffusion,
        times: Tensor,
        transition: Transition,
        guidance_weight: float = 0.0,
        looks_ahead: bool = False,
    ):
        self.generator, self.times, self.transition = generator, times, transition
        self.predict, self.decoder = generator.predict, generator.decoder
        self.guidance_weight, self.looks_ahead = float(guidance_weight), looks_ahead
        self.horizon = len(times) - 1
        self.image_shape, self.num_contexts = generator.image_shape, generator.num_contexts
        shape = generator.fields["latents"].shape
        self.shape = shape
        low, high = sorted((float(times[0]), float(times[-1])))
        self.fields = {
            "latents": latent_field(shape),
            "time": Field((1,), torch.float32, low, high),
            "mean": latent_field(shape),
            "std": Field((1,), torch.float32, 0.0, LATENT_LIMIT),
            "denoised": latent_field(shape),
            "features": generator.fields["features"],
        }
        zeros = torch.zeros(1, *shape)
        for step in range(self.horizon):
            std = self._gaussian(zeros, zeros, torch.tensor([step]))[1]
            if not std.item() >= SMALLEST_STD:
                raise ValueError(
                    f"eta must leave every decision a standard deviation of at least {SMALLEST_STD:g}, got "
                    f"{transition.eta}, with which decision {step} has {std.item():.1e}"
                )

    def actions(self, mode: str, device: torch.device) -> LatentActions | DeviationActions:
        """Returns how actions become the next latents: as they are ("physical"), or as deviations ("residual").

        Raises:
            ValueError: for another mode.
        """
        if mode == "physical":
            return LatentActions(self.shape, LATENT_LIMIT)
        if mode != "residual":
            raise ValueError(f"action_mode must be 'residual' or 'physical', got {mode!r}")
        return DeviationActions(self.shape)

    def start(self, context: Context, rng: BatchRng) -> DenoisingState:
        """Returns standard normal noise."""
        noise = self.generator.noise(rng)
        return self._look_ahead(DenoisingState(noise, context, 0, torch.zeros_like(context), None))

    def observe(self, state: DenoisingState, names: Sequence[str]) -> Observation:
        """Returns latents, mean and denoised (N, C, h, w), time and std (N, 1), features (N, L, D).

        What is predicted is 0 after the last decision, since there is no next one.
        """
        latents, device = state.latents, state.latents.device
        fields = {
            "latents": latents,
            "time": self._time(state).float()[:, None],
        }
        for name in ("mean", "std", "denoised", "features"):
            if name not in names:
                continue
            if state.prediction is None:
                fields[name] = self.fields[name].zeros(len(latents), device)
            elif name == "std":
                fields[name] = state.prediction.std[:, None]
            elif name == "features":
                fields[name] = shown_features(state.prediction.features)
            else:
                fields[name] = limit_latents(getattr(state.prediction, name))
        return {name: value for name, value in fields.items() if name in names}

    def advance(self, state: DenoisingState, command: Tensor | Deviation, rng: BatchRng) -> DenoisingState:
        """Returns the next latents: the command, or where the deviation from the generator's mean leads."""
        if isinstance(command, Deviation):
            state = self._predict(state)
            assert state.prediction is not None
            spread = per_image(state.prediction.std, state.latents)
            latents = limit_latents(state.prediction.mean + spread * command.value)
        else:
            latents = command.float()
        return self._look_ahead(
            dataclasses.replace(state, latents=latents, step=state.step + 1, prediction=None)
        )

    def predicted(self, latents: Tensor, step: Tensor, context: Context) -> Prediction:
        """Returns where the next latents come from, with gradients to the network's weights where it has some.

        Args:
            latents: (N, C, h, w).
            step: (N,) int64, the decision at each.
            context: (N,) int64.
        """
        time = self.times.to(latents.device)[step]
        found = self.predict(latents, time, context, self.guidance_weight > 0)
        weight = torch.full(context.shape, self.guidance_weight, device=latents.device)
        data = self.generator.path.data(latents, time, self.generator.guided(found, weight))
        mean, std = self._gaussian(latents, data, step)
        return Prediction(mean, std.float(), data, found.features)

    def use(self, network: nn.Module) -> None:
        """Predicts by another network of the same shapes from now on, such as one that is being tuned."""
        self.generator.network = network

    def decode(self, state: DenoisingState) -> Tensor:
        """Returns images (N, C', H, W) of the latents as they are, noise included."""
        return self.decoder(state.latents).float()

    def preview(self, state: DenoisingState) -> Tensor:
        """Returns the images (N, C', H, W) that the generator expects at the end."""
        prediction = self._predict(state).prediction
        return self.decode(state) if prediction is None else self.decoder(prediction.denoised).float()

    def undecided(self, state: DenoisingState) -> Tensor:
        """Returns the noise level sigma at every place, (N, h, w)."""
        _, height, width = self.shape
        sigma = self.generator.path.sigma(self._time(state)).float()
        return sigma[:, None, None].expand(-1, height, width)

    def diagnostics(self, state: DenoisingState) -> dict[str, Tensor]:
        """Returns the network evaluations so far, and the time of the latents."""
        return {"nfe": state.calls, "time": self._time(state).float()}

    def _time(self, state: DenoisingState) -> Tensor:
        return self.times[state.step].to(state.latents.device).expand(len(state.latents))

    def _gaussian(self, latents: Tensor, data: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        times = self.times.to(latents.device)
        return self.transition.gaussian(latents, data, times[step], times[step + 1])

    def _look_ahead(self, state: DenoisingState) -> DenoisingState:
        return self._predict(state) if self.looks_ahead else state

    def _predict(self, state: DenoisingState) -> DenoisingState:
        """Returns the state with its prediction, if there is a next decision."""
        if state.prediction is not None or state.step == self.horizon:
            return state
        step = torch.full_like(state.context, state.step)
        found = self.predicted(state.latents, step, state.context)
        calls = state.calls + 1 + (self.guidance_weight > 0)
        return dataclasses.replace(state, prediction=found, calls=calls)


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
    transition: str | None = None,
    eta: float | None = None,
    guidance_weight: float | None = None,
    prompts: Sequence[str] | None = None,
) -> DenoisingSampler:
    """Returns the sampler of a named backbone's denoising steps, or of a pipeline's in a folder of diffusers.

    The times of a named backbone are evenly spaced, those of a pipeline its scheduler's, the last one that of the
    least noise: next to the data, so that the last decision has a density too.

    Args:
        backbone: see `genenv.make.vector`.
        num_steps: decisions T, by default 20, of a pipeline 50.
        device: where the network runs.
        dtype: of the network.
        needs_features: predict before each decision, for "mean", "std", "denoised" and "features".
        compile: run the network through torch.compile.
        network: which one of a backbone that has both of `NETWORKS`, by default the first; a pipeline has one.
        transition: one of `genenv.transitions.TRANSITIONS`; by default "flow-sde" of SiT, "ddim" of others.
        eta: its strength of noise; by default 1 of "ddim", 0.7 of "flow-sde".
        guidance_weight: w of c + w (c - u), constant; 0, the default, for none.
        prompts: what there is to show, for a pipeline that takes texts; None for labels.

    Raises:
        ValueError: if a value is not legal, or the backbone has no such network.
    """
    if transition not in (None, *TRANSITIONS):
        raise ValueError(f"transition must be one of {', '.join(TRANSITIONS)}, got {transition!r}")
    weight = constant_guidance(guidance_weight)
    if num_steps is not None and num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if tier_of(backbone).name in PIPELINES:
        generator, times = _of_pipeline(backbone, num_steps or 50, device, dtype, compile, network, prompts)
        rule = transition or "ddim"
    else:
        if prompts is not None:
            raise ValueError(f"prompts must be None for {backbone!r}, which shows labels, got {prompts!r}")
        part = choose_part(backbone, network, NETWORKS, "diffusion transformer")
        make, usual = NETWORKS[part]
        rule, steps = transition or usual, num_steps or 20
        generator = make(backbone, None, device, dtype, False, compile, schedule=PUBLISHED)
        first, last = generator.params[0].static[[0, -1]].tolist()
        times = torch.linspace(first, last, steps + 1, dtype=torch.float64)
    kind = TRANSITIONS[rule]
    drawn = kind(generator.path, kind.usual if eta is None else float(eta))
    return DenoisingSampler(generator, times, drawn, weight, needs_features)


def _of_pipeline(
    backbone: str,
    num_steps: int,
    device: torch.device | str,
    dtype: torch.dtype,
    compile: bool,
    network: str | None,
    prompts: Sequence[str] | None,
) -> tuple[Diffusion, Tensor]:
    """Returns the generator in a pipeline's folder, and the times of its decisions."""
    pipeline = load_pipeline(backbone, prompts, dtype, device=device)
    part = pipeline.network.part
    if network not in (None, part):
        raise ValueError(f"network must be {part!r}, the only one of {backbone!r}, or None, got {network!r}")
    times = pipeline.times(num_steps)
    if times[-1] > 0:
        times = torch.cat([times, times.new_zeros(1)])
    elif num_steps == len(pipeline.path.levels):
        raise ValueError(
            f"num_steps must be at most {num_steps - 1}, with which each decision has noise, got {num_steps}"
        )
    else:  # its last time is that of the least noise already
        times = pipeline.times(num_steps + 1)
    num_tokens, feature_dim = pipeline.network.feature_shape
    generator = Diffusion(
        torch.compile(pipeline.network) if compile else pipeline.network,
        pipeline.decoder,
        pipeline.path,
        latent_shape=pipeline.latent_shape,
        num_tokens=num_tokens,
        feature_dim=feature_dim,
        condition=pipeline.condition,
        image_shape=pipeline.image_shape,
        guided_channels=pipeline.latent_shape[0],
    )
    return generator, times
