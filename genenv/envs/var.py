"""VAR: next-scale prediction of an image (Tian et al. 2024), with AdaGen's four schedule parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from genenv.actions import Schedule, ScheduleActions
from genenv.conditions import Condition, Labels, both
from genenv.fields import feature_field, latent_field, limit_latents, shown_features
from genenv.filters import at_temperature, keep_top_k, keep_top_p
from genenv.models.digits_msvq import DigitsMSVQ
from genenv.models.kv_cache import KVCache
from genenv.models.var import VARTransformer
from genenv.models.var_vqvae import VARVQVAE
from genenv.protocols import Context, Observation
from genenv.rng import BatchRng, categorical
from genenv.schedules import POSITIVE, UNIT, ScheduleParam, constant, residual_margins, scaled_unit, setting
from genenv.tiers import load_part, schedule_settings

PARTS = ("var", "msvq")
"""Networks of a backbone."""


TOP_K_RULES = ("monotone", "released")
"""What a top-k below 1 does: it keeps one token, as 1 does; or, as in AdaGen's released code, it filters nothing."""

GUIDANCE = {"imagenet256-var-d30": 2.0}
"""Backbone -> the last scale's hand-crafted guidance in AdaGen's configurations, where it is not 1.5."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the network says of the coming scale, of M positions."""

    conditional: Tensor  # (N, M, V) logits
    unconditional: Tensor | None  # (N, M, V) logits; None where guidance is not wanted
    hidden: Tensor  # (N, M, D) of the conditional half


@dataclasses.dataclass(frozen=True)
class VARState:
    """A token map between two scales.

    Attributes:
        latents: (N, C, h, w) float32, the accumulated token map: what an image is decoded from.
        maps: (N, M, C) float32, what the network reads of all scales after the first, up to the coming one.
        tokens: (N, M) int64, the last scale's, row-major; none before the first decision.
        context: (N,) int64.
        step: decisions taken, and the coming scale.
        calls: (N,) int64, scales that the network read for each image, guidance counted.
        confidence: (N,) mean log-probability of the tokens chosen last.
        cache: keys and values of the scales read so far, the conditional rows first.
        unconditional_scales: how many scales are in the cache's unconditional rows.
        prediction: of the coming scale; None until it is needed.
    """

    latents: Tensor
    maps: Tensor
    tokens: Tensor
    context: Context
    step: int
    calls: Tensor
    confidence: Tensor
    cache: KVCache
    unconditional_scales: int
    prediction: Prediction | None


class VARSampler:
    """Draws the token map of one scale in each of T decisions, coarse to fine.

    Dynamics of AdaGen (methods of the released code), at scale t: guided logits l = c + u (c - n), c with the class and
    n without, where u = w t / (T - 1) grows over the scales; all but the k likeliest tokens, then all but the
    likeliest of probability p, are dropped; token ~ Cat(l / token temperature). A k below 1 keeps one token, so that
    less k is always fewer tokens; in the released code, which policies trained on it need, it keeps all of them.

    Args:
        transformer: the generator.
        tokenizer: its tokenizer.
        params: guidance_weight (w), top_k, top_p, token_temperature, one decision for each scale.
        condition: what the transformer is given for a context, and for none; by default its class labels.
        top_k_rule: "monotone" or "released".
        needs_features: predict before each decision, so that a policy can see the features. Otherwise the prediction
            waits for the guidance weight, and its unconditional half is left out where all weights are 0. Where
            guidance is wanted later, that half catches up on the scales it has not read.
    """

    stochastic = True

    def __init__(
        self,
        transformer: VARTransformer,
        tokenizer: DigitsMSVQ | VARVQVAE,
        params: Sequence[ScheduleParam],
        *,
        condition: Condition | None = None,
        top_k_rule: str = "monotone",
        needs_features: bool = False,
    ):
        if top_k_rule not in TOP_K_RULES:
            raise ValueError(f"top_k_rule must be one of {', '.join(TOP_K_RULES)}, got {top_k_rule!r}")
        self.top_k_rule = top_k_rule
        self.transformer, self.tokenizer, self.quantiser = transformer, tokenizer, tokenizer.quantize
        self.params, self.horizon = tuple(params), len(params[0].static)
        self.condition = Labels(transformer.num_classes) if condition is None else condition
        self.image_shape, self.offsets = tokenizer.image_shape, transformer.offsets
        self.needs_features = needs_features
        channels, height, width = self.quantiser.latent_shape
        self.fields = {
            "latents": latent_field((channels, height, width)),
            "features": feature_field(height * width, transformer.embed_dim),
        }

    @property
    def num_contexts(self) -> int:
        """How many contexts the transformer knows."""
        return self.condition.num_contexts

    def actions(self, mode: str, device: torch.device) -> ScheduleActions:
        """Returns how actions become guidance weights, filters and temperatures."""
        return ScheduleActions(self.params, mode, device)

    def start(self, context: Context, rng: BatchRng) -> VARState:
        """Returns the empty token map."""
        n, shape, device = len(context), self.quantiser.latent_shape, context.device
        state = VARState(
            latents=torch.zeros(n, *shape, device=device),
            maps=torch.zeros(n, 0, shape[0], device=device),
            tokens=context.new_zeros(n, 0),
            context=context,
            step=0,
            calls=torch.zeros_like(context),
            confidence=torch.zeros(n, device=device),
            cache=self.transformer.new_cache(2 * n),
            unconditional_scales=0,
            prediction=None,
        )
        return self._predict(state, guided=True) if self.needs_features else state

    def observe(self, state: VARState, names: Sequence[str]) -> Observation:
        """Returns latents (N, C, h, w) and features (N, h * w, D); the features are 0 after the last decision."""
        fields = {}
        if "latents" in names:
            fields["latents"] = limit_latents(state.latents)
        if "features" in names:
            if state.prediction is None:
                fields["features"] = self.fields["features"].zeros(len(state.latents), state.latents.device)
            else:
                fields["features"] = shown_features(resize(state.prediction.hidden, state.latents.shape[-1]))
        return fields

    def advance(self, state: VARState, params: Schedule, rng: BatchRng) -> VARState:
        """Returns the token map after one scale with per-image parameters {name: (N,)}."""
        if state.prediction is None:
            state = self._predict(state, guided=bool((params["guidance_weight"] != 0).any()))
        num_tokens = self.offsets[state.step + 1] - self.offsets[state.step]
        return self.decide(state, params, rng.at(state.step).uniform(num_tokens))

    def decide(self, state: VARState, params: Schedule, token_uniform: Tensor) -> VARState:
        """Takes one decision with given randomness: uniform (N, M) for the tokens."""
        assert state.prediction is not None
        logits = self.guided_logits(state, params["guidance_weight"])
        tokens = categorical(self.filtered(logits, params), token_uniform)  # (N, M)
        log_probability = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        latents = state.latents + self.quantiser.expand(self.quantiser.embedding(tokens), state.step)
        maps, step = state.maps, state.step + 1
        if step < self.horizon:
            maps = torch.cat([maps, self.quantiser.shrink(latents, step)], dim=1)
        state = dataclasses.replace(
            state,
            latents=latents,
            maps=maps,
            tokens=tokens,
            step=step,
            confidence=log_probability.mean(-1),
            prediction=None,
        )
        if self.needs_features and step < self.horizon:
            state = self._predict(state, guided=True)
        return state

    def guided_logits(self, state: VARState, weight: Tensor) -> Tensor:
        """Returns the logits (N, M, V) of the coming scale with guidance weights (N,)."""
        assert state.prediction is not None
        logits = state.prediction.conditional.float()
        if state.prediction.unconditional is None:
            return logits
        weight = (weight * (state.step / max(self.horizon - 1, 1))).float()[:, None, None]
        return logits + weight * (logits - state.prediction.unconditional.float())

    def filtered(self, logits: Tensor, params: Schedule) -> Tensor:
        """Returns the logits (N, M, V) that the tokens are drawn from."""
        top_k = params["top_k"] if self.top_k_rule == "released" else params["top_k"].clamp(min=1)
        kept = keep_top_p(keep_top_k(logits, top_k), params["top_p"])
        return at_temperature(kept, params["token_temperature"])

    def decode(self, state: VARState) -> Tensor:
        """Returns images (N, C, H, W) of the accumulated token map."""
        return self.tokenizer.decode(state.latents)

    def undecided(self, state: VARState) -> Tensor:
        """Returns the share of the scales that are still to come at every place, (N, h, w)."""
        n, _, height, width = state.latents.shape
        return state.latents.new_full((n, height, width), 1 - state.step / self.horizon)

    def diagnostics(self, state: VARState) -> dict[str, Tensor]:
        """Returns the network evaluations so far, of one scale each, and the confidence of the last decision."""
        return {"nfe": state.calls, "confidence": state.confidence}

    def _predict(self, state: VARState, guided: bool) -> VARState:
        """Returns the state with the network's prediction of the coming scale.

        One call, of 2N rows where guided; two where the unconditional half has scales to catch up on.
        """
        n, step, read = len(state.context), state.step, state.unconditional_scales
        cache = state.cache.branch(self.offsets[step])
        condition, unconditional = both(self.condition, state.context), None
        if guided and read == step:
            logits, hidden = self._read(state.maps.repeat(2, 1, 1), condition, step, cache, slice(0, 2 * n))
            conditional, unconditional, hidden = logits[:n], logits[n:], hidden[:n]
        else:
            conditional, hidden = self._read(state.maps, condition[:n], step, cache, slice(0, n))
            if guided:
                logits, _ = self._read(state.maps, condition[n:], read, cache, slice(n, 2 * n))
                unconditional = logits[:, -conditional.shape[1] :]
        return dataclasses.replace(
            state,
            calls=state.calls + 1 + guided * (step + 1 - read),
            cache=cache,
            unconditional_scales=step + 1 if guided else read,
            prediction=Prediction(conditional, unconditional, hidden),
        )

    def _read(
        self, maps: Tensor, condition: Tensor, first: int, cache: KVCache, rows: slice
    ) -> tuple[Tensor, Tensor]:
        """Returns the logits and hidden states of the scales from `first` on, of which the cache knows nothing yet."""
        known = max(0, self.offsets[first] - self.offsets[1])
        return self.transformer(maps[:, known:], condition, first, cache, rows)


def resize(hidden: Tensor, side: int) -> Tensor:
    """Returns a scale's hidden states (N, p * p, D) brought to another size, (N, side * side, D) float32."""
    size = round(hidden.shape[1] ** 0.5)
    grid = hidden.float().transpose(1, 2).unflatten(2, (size, size))
    return F.interpolate(grid, size=side, mode="bicubic").flatten(2).transpose(1, 2)


def schedule_params(
    num_scales: int,
    vocab_size: int,
    guidance_weight: float | None = None,
    top_k: float | None = None,
    top_p: float | None = None,
    token_temperature: float | None = None,
) -> tuple[ScheduleParam, ...]:
    """Returns AdaGen's parameters with VAR's hand-crafted schedule, all of them constant.

    Guidance 1.5, to which the sampler lets it grow linearly; 900 of every 4096 tokens, probability 0.96, token
    temperature 1; or what is given instead, top-k in [0, V] and top-p in [0, 1]. A top-k of 0 keeps one token, unless
    the sampler has the released rule: there, and in the released configurations, it is no filter.

    Raises:
        ValueError: if a setting is not a finite number in its range.
    """
    count = scaled_unit(float(vocab_size))
    guidance_weight = setting("guidance_weight", guidance_weight, 1.5, POSITIVE)
    top_k = setting("top_k", top_k, vocab_size * 900 / 4096, count)
    top_p = setting("top_p", top_p, 0.96, UNIT)
    token_temperature = setting("token_temperature", token_temperature, 1.0, POSITIVE)
    return (
        ScheduleParam("guidance_weight", POSITIVE, constant(guidance_weight, num_scales), span=2.0),
        ScheduleParam("top_k", count, constant(top_k, num_scales), span=1.0),
        ScheduleParam("top_p", UNIT, constant(top_p, num_scales), span=2.0),
        ScheduleParam("token_temperature", POSITIVE, constant(token_temperature, num_scales), span=1.0),
    )


def make_sampler(
    backbone: str,
    num_steps: int | None,
    device: torch.device | str,
    dtype: torch.dtype,
    needs_features: bool,
    compile: bool,
    guidance_weight: float | None = None,
    top_k: float | None = None,
    top_p: float | None = None,
    token_temperature: float | None = None,
    top_k_rule: str = "monotone",
    schedule: str | None = None,
) -> VARSampler:
    """Returns the VAR sampler of a named backbone; a decision is a scale, so that their number is the backbone's.

    The settings of its hand-crafted schedule are explained at `schedule_params`, where they come from at
    `genenv.tiers.schedule_settings`; guidance is by default the backbone's own. For the rule see `VARSampler`.
    """
    transformer = load_part("var", backbone).to(device, dtype)
    tokenizer = load_part("msvq", backbone).to(device)
    num_scales = len(transformer.patch_nums)
    if num_steps not in (None, num_scales):
        raise ValueError(
            f"num_steps must be {num_scales}, the scales of backbone {backbone!r}, or None, got {num_steps}"
        )
    settings = schedule_settings(
        backbone,
        "var",
        schedule,
        guidance_weight=GUIDANCE.get(backbone) if guidance_weight is None else guidance_weight,
        top_k=top_k,
        top_p=top_p,
        token_temperature=token_temperature,
    )
    params = schedule_params(num_scales, transformer.vocab_size, **settings)
    params = residual_margins(params, schedule)
    if compile:
        transformer.compile()
    return VARSampler(
        transformer,
        tokenizer,
        params,
        top_k_rule=top_k_rule,
        needs_features=needs_features,
    )
