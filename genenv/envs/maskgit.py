"""MaskGIT: parallel decoding of a token grid (Chang et al. 2022), with AdaGen's four schedule parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genenv.actions import Schedule, ScheduleActions
from genenv.conditions import Condition, Labels
from genenv.fields import Field, feature_field, shown_features
from genenv.filters import at_temperature
from genenv.protocols import Context, Observation
from genenv.rng import BatchRng, categorical, gumbel
from genenv.schedules import (
    POSITIVE,
    UNIT,
    ScheduleParam,
    constant,
    cosine,
    linear_decay,
    linear_rise,
    residual_margins,
    setting,
)
from genenv.tiers import load_part, schedule_settings

PARTS = ("maskgit", "vq")
"""Networks of a backbone."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the network says of a partly masked grid."""

    conditional: Tensor  # (N, L, V) logits
    unconditional: Tensor | None  # (N, L, V) logits; None where guidance is not wanted
    features: Tensor  # (N, L, D) of the conditional half


@dataclasses.dataclass(frozen=True)
class MaskGITState:
    """A token grid between two decisions.

    Attributes:
        tokens: (N, L) int64, the mask id where undecided.
        sampled: (N, L) int64, the last complete grid: what an image is decoded from.
        context: (N,) int64.
        step: decisions taken.
        calls: (N,) int64, network evaluations spent on each image, guidance counted.
        confidence: (N,) mean log-probability of the tokens chosen last.
        prediction: of `tokens`; None until it is needed.
    """

    tokens: Tensor
    sampled: Tensor
    context: Context
    step: int
    calls: Tensor
    confidence: Tensor
    prediction: Prediction | None


class MaskGITSampler:
    """Fills a grid in T decisions; each samples every open token and masks the least confident again.

    Dynamics of AdaGen (methods of the released code): guided logits l = c + w (c - u); token ~ Cat(l / token
    temperature); confidence = log softmax(l)[token] + mask_temperature * Gumbel, +inf for tokens decided before;
    floor(L * mask_ratio), at most L - 1, tokens stay masked. The image is decoded from the complete grid of the
    last decision.

    Args:
        network: (tokens (M, L), condition (M, ...)) -> logits (M, L, V), features (M, L, D).
        detokenise: tokens (N, h, w) -> images (N, C, H, W) in [0, 1].
        params: mask_ratio, mask_temperature, token_temperature, guidance_weight.
        grid_size: side of the grid; L = grid_size ** 2.
        codebook_size: number of tokens V; id V is the mask.
        condition: what the network is given for a context, and for none.
        feature_dim: D.
        image_shape: (C, H, W).
        needs_features: predict before each decision, so that a policy can see the features. Otherwise the
            prediction waits for the guidance weight, and its unconditional half is left out where all weights are 0.
    """

    stochastic = True

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        detokenise: Callable[[Tensor], Tensor],
        params: Sequence[ScheduleParam],
        *,
        grid_size: int,
        codebook_size: int,
        condition: Condition,
        feature_dim: int,
        image_shape: tuple[int, int, int],
        needs_features: bool = False,
    ):
        self.network, self.detokenise = network, detokenise
        self.params, self.horizon = tuple(params), len(params[0].static)
        self.grid_size, self.length = grid_size, grid_size**2
        self.mask_id, self.condition = codebook_size, condition
        self.image_shape, self.needs_features = image_shape, needs_features
        self.fields = {
            "tokens": Field((grid_size, grid_size), torch.int64, 0, codebook_size),
            "features": feature_field(self.length, feature_dim),
        }

    @property
    def num_contexts(self) -> int:
        """How many contexts the network knows."""
        return self.condition.num_contexts

    def actions(self, mode: str, device: torch.device) -> ScheduleActions:
        """Returns how actions become mask ratios, temperatures and guidance weights."""
        return ScheduleActions(self.params, mode, device)

    def start(self, context: Context, rng: BatchRng) -> MaskGITState:
        """Returns the fully masked grid."""
        tokens = torch.full((len(context), self.length), self.mask_id, device=context.device)
        calls = torch.zeros_like(context)
        confidence = torch.zeros(len(context), device=context.device)
        state = MaskGITState(tokens, torch.zeros_like(tokens), context, 0, calls, confidence, None)
        return self._predict(state, guided=True) if self.needs_features else state

    def observe(self, state: MaskGITState, names: Sequence[str]) -> Observation:
        """Returns tokens (N, h, w) and features (N, L, D); the features are 0 after the last decision."""
        fields = {}
        if "tokens" in names:
            fields["tokens"] = state.tokens.view(-1, self.grid_size, self.grid_size)
        if "features" in names:
            if state.prediction is None:
                fields["features"] = self.fields["features"].zeros(len(state.tokens), state.tokens.device)
            else:
                fields["features"] = shown_features(state.prediction.features)
        return fields

    def advance(self, state: MaskGITState, params: Schedule, rng: BatchRng) -> MaskGITState:
        """Returns the grid after one decision with per-image parameters {name: (N,)}."""
        weight = params["guidance_weight"]
        if state.prediction is None:
            state = self._predict(state, guided=bool((weight != 0).any()))
        uniform = rng.at(state.step).uniform(2, self.length)
        return self.decide(state, params, uniform[:, 0], gumbel(uniform[:, 1]))

    def decide(
        self, state: MaskGITState, params: Schedule, token_uniform: Tensor, noise: Tensor
    ) -> MaskGITState:
        """Takes one decision with given randomness: uniform (N, L) for the tokens, Gumbel (N, L) for the masks."""
        prediction = state.prediction
        assert prediction is not None
        logits = prediction.conditional.float()
        if prediction.unconditional is not None:
            weight = params["guidance_weight"].float()[:, None, None]
            logits = logits + weight * (logits - prediction.unconditional.float())
        drawn = categorical(at_temperature(logits, params["token_temperature"]), token_uniform)  # (N, L)
        undecided = state.tokens == self.mask_id
        sampled = torch.where(undecided, drawn, state.tokens)
        log_probability = logits.log_softmax(-1).gather(-1, sampled[..., None])[..., 0]
        confidence = log_probability + params["mask_temperature"].float()[:, None] * noise.float()
        confidence = confidence.masked_fill(~undecided, math.inf)
        num_masked = (params["mask_ratio"] * self.length).floor().long().clamp(max=self.length - 1)
        cutoff = confidence.sort(-1).values.gather(-1, num_masked[:, None])
        open_count = undecided.sum(-1).clamp(min=1)
        state = MaskGITState(
            tokens=sampled.masked_fill(confidence < cutoff, self.mask_id),
            sampled=sampled,
            context=state.context,
            step=state.step + 1,
            calls=state.calls,
            confidence=(log_probability * undecided).sum(-1) / open_count,
            prediction=None,
        )
        if self.needs_features and state.step < self.horizon:
            state = self._predict(state, guided=True)
        return state

    def decode(self, state: MaskGITState) -> Tensor:
        """Returns images (N, C, H, W) of the last complete grid; before the first decision that is all token 0."""
        return self.detokenise(state.sampled.view(-1, self.grid_size, self.grid_size)).float()

    def undecided(self, state: MaskGITState) -> Tensor:
        """Returns 1 where a token is masked, (N, h, w)."""
        return (state.tokens == self.mask_id).float().view(-1, self.grid_size, self.grid_size)

    def diagnostics(self, state: MaskGITState) -> dict[str, Tensor]:
        """Returns the network evaluations so far, the open tokens, and the confidence of the last decision."""
        return {
            "nfe": state.calls,
            "num_masked": (state.tokens == self.mask_id).sum(-1),
            "confidence": state.confidence,
        }

    def _predict(self, state: MaskGITState, guided: bool) -> MaskGITState:
        """Returns the state with the network's prediction: one call, of 2N rows where guided.

        Before the first decision N + 1 do: without a class, an empty grid is the same for every image.
        """
        tokens, condition, n = state.tokens, self.condition.given(state.context), len(state.tokens)
        if guided:
            without_class = tokens[:1] if state.step == 0 else tokens
            null = self.condition.null(len(without_class), tokens.device)
            tokens, condition = torch.cat([tokens, without_class]), torch.cat([condition, null])
        logits, features = self.network(tokens, condition)
        unconditional = logits[n:].expand_as(logits[:n]) if guided else None
        prediction = Prediction(logits[:n], unconditional, features[:n])
        return dataclasses.replace(state, calls=state.calls + 1 + guided, prediction=prediction)


def schedule_params(
    num_steps: int,
    guidance_weight: float | None = None,
    mask_temperature: float | None = None,
    token_temperature: float | None = None,
) -> tuple[ScheduleParam, ...]:
    """Returns AdaGen's parameters with MaskGIT's hand-crafted schedule.

    Mask ratio cosine, re-masking temperature falling linearly from `mask_temperature` to 0, constant token temperature,
    guidance rising linearly from 0 to `guidance_weight`; each setting is 1 by default.

    Raises:
        ValueError: if a setting is not a finite number of at least 0.
    """
    guidance_weight = setting("guidance_weight", guidance_weight, 1.0, POSITIVE)
    mask_temperature = setting("mask_temperature", mask_temperature, 1.0, POSITIVE)
    token_temperature = setting("token_temperature", token_temperature, 1.0, POSITIVE)
    return (
        ScheduleParam("mask_ratio", UNIT, cosine(num_steps), span=2.0),
        ScheduleParam("mask_temperature", POSITIVE, linear_decay(mask_temperature, num_steps), span=2.0),
        ScheduleParam("token_temperature", POSITIVE, constant(token_temperature, num_steps), span=1.0),
        ScheduleParam("guidance_weight", POSITIVE, linear_rise(guidance_weight, num_steps), span=2.0),
    )


def make_sampler(
    backbone: str,
    num_steps: int | None,
    device: torch.device | str,
    dtype: torch.dtype,
    needs_features: bool,
    compile: bool,
    guidance_weight: float | None = None,
    mask_temperature: float | None = None,
    token_temperature: float | None = None,
    schedule: str | None = None,
) -> MaskGITSampler:
    """Returns the MaskGIT sampler of a named backbone, by default with 16 decisions.

    The settings of its hand-crafted schedule are explained at `schedule_params`, where they come from at
    `genenv.tiers.schedule_settings`.
    """
    num_steps = 16 if num_steps is None else num_steps
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    settings = schedule_settings(
        backbone,
        "maskgit",
        schedule,
        guidance_weight=guidance_weight,
        mask_temperature=mask_temperature,
        token_temperature=token_temperature,
    )
    params = schedule_params(num_steps, **settings)
    params = residual_margins(params, schedule)
    transformer = load_part("maskgit", backbone).to(device, dtype)
    tokenizer = load_part("vq", backbone).to(device)
    side = transformer.grid_size * tokenizer.downsampling
    return MaskGITSampler(
        torch.compile(transformer) if compile else transformer,
        tokenizer.decode,
        params,
        grid_size=transformer.grid_size,
        codebook_size=transformer.codebook_size,
        condition=Labels(transformer.num_classes),
        feature_dim=transformer.embed_dim,
        image_shape=(tokenizer.image_channels, side, side),
        needs_features=needs_features,
    )
