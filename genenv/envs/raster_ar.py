"""Tokens in raster order, one after the other, with a schedule over the rows: LlamaGen (Sun et al. 2024).

Networks of other papers that generate alike take the same sampler; see `sampler_of`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from genenv.actions import Schedule, ScheduleActions
from genenv.conditions import Condition, Labels, both
from genenv.fields import Field, feature_field, shown_features
from genenv.filters import at_temperature, keep_top_k, keep_top_p
from genenv.models.kv_cache import KVCache
from genenv.models.raster import RasterTransformer
from genenv.protocols import Context, Observation
from genenv.rng import BatchRng, categorical
from genenv.schedules import (
    POSITIVE,
    UNIT,
    Bijector,
    ScheduleParam,
    constant,
    residual_margins,
    scaled_unit,
    setting,
)
from genenv.tiers import load_part, schedule_settings

PARTS = ("llamagen", "vq")
"""Networks of a backbone."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the network says of the next token."""

    conditional: Tensor  # (N, V) logits
    unconditional: Tensor | None  # (N, V) logits; None where guidance is not wanted

    def guided(self, weight: Tensor | None) -> Tensor:
        """Returns the logits (N, V) under classifier-free guidance of weights (N,)."""
        logits = self.conditional.float()
        if self.unconditional is None or weight is None:
            return logits
        return logits + weight.float()[:, None] * (logits - self.unconditional.float())


@dataclasses.dataclass(frozen=True)
class RasterState:
    """A token grid that is decided up to some place.

    Attributes:
        tokens: (N, L) int64 in raster order, V where open.
        context: (N,) int64.
        known: number of tokens decided.
        calls: (N,) int64, network evaluations spent on each image, guidance counted.
        features: (N, K, D), the hidden states that predicted the first K tokens; empty where nobody wants them.
        cache: rows [0, N) conditional, [N, 2N) unconditional where there is guidance; shared with earlier states;
            None where nothing is predicted.
        unconditional_length: entries that the unconditional half of the cache holds, at most 1 + known.
        prediction: of the next token; None until it is needed.
    """

    tokens: Tensor
    context: Context
    known: int
    calls: Tensor
    features: Tensor
    cache: KVCache | None
    unconditional_length: int
    prediction: Prediction | None


class RasterGrid:
    """A grid of tokens in raster order: how it fills, which image it stands for, and what a network says of the next.

    Who chooses the tokens is left to a sampler. One network call for each token, on one new entry.

    Args:
        read: (tokens (R, M), condition (R, ...) or None, start, cache, rows) -> logits (R, V), features (R, D) of the
            last entry; see `RasterTransformer.read`. None where nothing is predicted.
        new_cache: number of rows -> an empty cache. None likewise.
        detokenise: tokens (N, h, w) -> images (N, C, H, W) in [0, 1].
        grid_size: side of the grid; L = grid_size ** 2.
        codebook_size: number of tokens V.
        condition: what the network is given for a context, and for none.
        feature_dim: D; 0 where nothing is predicted.
        image_shape: (C, H, W).
        needs_features: keep the hidden states of every prediction.
        has_guidance: whether there may be an unconditional half.
    """

    def __init__(
        self,
        read: Callable[[Tensor, Tensor | None, int, KVCache, slice], tuple[Tensor, Tensor]] | None,
        new_cache: Callable[[int], KVCache] | None,
        detokenise: Callable[[Tensor], Tensor],
        *,
        grid_size: int,
        codebook_size: int,
        condition: Condition,
        feature_dim: int,
        image_shape: tuple[int, int, int],
        needs_features: bool,
        has_guidance: bool,
    ):
        self.read, self.new_cache, self.detokenise = read, new_cache, detokenise
        self.grid_size, self.length = grid_size, grid_size**2
        self.codebook_size, self.condition, self.feature_dim = codebook_size, condition, feature_dim
        self.image_shape, self.needs_features, self.has_guidance = image_shape, needs_features, has_guidance
        self.fields = {"tokens": Field((grid_size, grid_size), torch.int64, 0, codebook_size)}
        if read is not None:
            self.fields["features"] = feature_field(self.length, feature_dim)

    @property
    def num_contexts(self) -> int:
        """How many contexts there are."""
        return self.condition.num_contexts

    def empty(self, context: Context) -> RasterState:
        """Returns the empty grid, of which nothing is predicted yet."""
        n = len(context)
        return RasterState(
            tokens=torch.full((n, self.length), self.codebook_size, device=context.device),
            context=context,
            known=0,
            calls=torch.zeros_like(context),
            features=torch.zeros(n, 0, self.feature_dim, device=context.device),
            cache=None if self.new_cache is None else self.new_cache(n * (1 + self.has_guidance)),
            unconditional_length=0,
            prediction=None,
        )

    def put(self, state: RasterState, tokens: Tensor) -> RasterState:
        """Returns the grid with one more token (N,) of each image."""
        grid = state.tokens.clone()
        grid[:, state.known] = tokens
        return dataclasses.replace(state, tokens=grid, known=state.known + 1, prediction=None)

    def predict(self, state: RasterState, guided: bool) -> RasterState:
        """Returns the state with the prediction of the next token: one call, of 2N rows where guided."""
        assert state.cache is not None
        n, known, read = len(state.context), state.known, state.unconditional_length
        state = dataclasses.replace(state, cache=state.cache.branch(known))
        if guided and read == known:
            logits, features = self._read(state, known, slice(0, 2 * n))
            prediction, features = Prediction(logits[:n], logits[n:]), features[:n]
        else:
            logits, features = self._read(state, known, slice(0, n))
            rest = self._read(state, read, slice(n, 2 * n))[0] if guided else None
            prediction = Prediction(logits, rest)
        known_features = state.features
        if self.needs_features:
            known_features = torch.cat([known_features, features[:, None].float()], dim=1)
        return dataclasses.replace(
            state,
            calls=state.calls + 1 + guided,
            features=known_features,
            unconditional_length=known + 1 if guided else read,
            prediction=prediction,
        )

    def observe(self, state: RasterState, names: Sequence[str]) -> Observation:
        """Returns tokens (N, h, w), V where open, and features (N, L, D), 0 where no prediction was made yet."""
        fields = {}
        if "tokens" in names:
            fields["tokens"] = state.tokens.view(-1, self.grid_size, self.grid_size)
        if "features" in names:
            missing = self.length - state.features.shape[1]
            fields["features"] = shown_features(F.pad(state.features, (0, 0, 0, missing)))
        return fields

    def decode(self, state: RasterState) -> Tensor:
        """Returns images (N, C, H, W) with every open place repeating the token decided last, or token 0 before it."""
        open_ = state.tokens == self.codebook_size
        tokens = state.tokens.masked_fill(open_, 0)
        last = tokens[:, max(state.known - 1, 0), None]
        return self.detokenise(
            torch.where(open_, last, tokens).view(-1, self.grid_size, self.grid_size)
        ).float()

    def undecided(self, state: RasterState) -> Tensor:
        """Returns 1 where a token is open, (N, h, w)."""
        return (state.tokens == self.codebook_size).float().view(-1, self.grid_size, self.grid_size)

    def diagnostics(self, state: RasterState) -> dict[str, Tensor]:
        """Returns the network evaluations so far; reading up what the unconditional half missed counts as one."""
        return {"nfe": state.calls}

    def _read(self, state: RasterState, start: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Returns what the network says of the next token, having read the rows' entries from `start` on."""
        assert self.read is not None
        assert state.cache is not None
        tokens = state.tokens[:, max(start - 1, 0) : state.known].repeat(2, 1)[rows]
        condition = both(self.condition, state.context)[rows] if start == 0 else None
        return self.read(tokens, condition, start, state.cache, rows)


class RasterSampler(RasterGrid):
    """Fills a grid row by row in T decisions; each sets the parameters under which its L / T tokens are drawn in turn.

    Dynamics of the released code: guided logits c + w (c - u), divided by the temperature, then filtered by top-k, then
    by top-p. The unconditional half is left out where all weights are 0, and reads what it missed when it is wanted
    again.

    Args:
        read: of the network; see `RasterGrid`, as for all but the next and the last.
        new_cache: of the network.
        detokenise: of the tokenizer.
        params: token_temperature, top_k, top_p and guidance_weight; without the latter there is no unconditional half.
        grid_size: side of the grid; L = grid_size ** 2.
        codebook_size: number of tokens V.
        condition: what the network is given for a context, and for none.
        feature_dim: D.
        image_shape: (C, H, W).
        needs_features: predict the first token of a decision before it, so that a policy can see the features.
            Otherwise the prediction waits for the guidance weight.
    """

    stochastic = True

    def __init__(
        self,
        read: Callable[[Tensor, Tensor | None, int, KVCache, slice], tuple[Tensor, Tensor]],
        new_cache: Callable[[int], KVCache],
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
        super().__init__(
            read,
            new_cache,
            detokenise,
            grid_size=grid_size,
            codebook_size=codebook_size,
            condition=condition,
            feature_dim=feature_dim,
            image_shape=image_shape,
            needs_features=needs_features,
            has_guidance=any(param.name == "guidance_weight" for param in params),
        )
        self.params, self.horizon = tuple(params), len(params[0].static)
        self.tokens_per_decision = self.length // self.horizon

    def actions(self, mode: str, device: torch.device) -> ScheduleActions:
        """Returns how actions become temperatures, filters and guidance weights."""
        return ScheduleActions(self.params, mode, device)

    def start(self, context: Context, rng: BatchRng) -> RasterState:
        """Returns the empty grid."""
        state = self.empty(context)
        return self.predict(state, self.has_guidance) if self.needs_features else state

    def advance(self, state: RasterState, params: Schedule, rng: BatchRng) -> RasterState:
        """Returns the grid after one decision with per-image parameters {name: (N,)}."""
        step = state.known // self.tokens_per_decision
        return self.decide(state, params, rng.at(step).uniform(self.tokens_per_decision))

    def decide(self, state: RasterState, params: Schedule, uniform: Tensor) -> RasterState:
        """Takes one decision with given randomness: uniform (N, M) for the M tokens of the decision."""
        guided = self.has_guidance and bool((params["guidance_weight"] != 0).any())
        for place in range(self.tokens_per_decision):
            if state.prediction is None:
                state = self.predict(state, guided)
            assert state.prediction is not None
            logits = state.prediction.guided(params.get("guidance_weight"))
            state = self.put(state, categorical(self.filtered(logits, params), uniform[:, place]))
        if self.needs_features and state.known < self.length:
            state = self.predict(state, self.has_guidance)
        return state

    def filtered(self, logits: Tensor, params: Schedule) -> Tensor:
        """Returns the logits (N, V) that the token is drawn from."""
        logits = at_temperature(logits, params["token_temperature"])
        # Below 1 the filter would turn itself off.
        return keep_top_p(keep_top_k(logits, params["top_k"].clamp(min=1)), params["top_p"])


@dataclasses.dataclass(frozen=True)
class Settings:
    """The constants of a hand-crafted schedule; None leaves the choice to the usual ones."""

    guidance_weight: float | None = None
    top_k: float | None = None
    top_p: float | None = None
    token_temperature: float | None = None


LLAMAGEN = Settings(guidance_weight=1.0, top_k=math.inf, top_p=0.999, token_temperature=1.0)
"""LlamaGen's: its guidance scale of 2 less 1, all tokens. Top-p stands at 0.999: a unit action has no effect on 1."""


def schedule_params(
    num_steps: int,
    codebook_size: int,
    given: Settings = Settings(),
    usual: Settings = LLAMAGEN,
    has_guidance: bool = True,
) -> tuple[ScheduleParam, ...]:
    """Returns the parameters with a constant schedule, guidance_weight among them where the network has a null class.

    Top-k reaches from 0 to 2V; a usual one of more than V stands at V, where it keeps all. So does the setting 0,
    which is no filter in the released code, while an action that makes it 0 keeps one token.

    Raises:
        ValueError: if a setting is not a finite number in its range, or a guidance weight is given where there is none.
    """
    up_to_twice_all = scaled_unit(2.0 * codebook_size)
    assert usual.top_k is not None
    usual = dataclasses.replace(usual, top_k=min(usual.top_k, codebook_size))

    def param(name: str, bijector: Bijector, span: float, at_0: float = 0.0) -> ScheduleParam:
        value = setting(name, getattr(given, name), getattr(usual, name), bijector) or at_0
        return ScheduleParam(name, bijector, constant(value, num_steps), span)

    params = (
        param("token_temperature", POSITIVE, 1.0),
        param("top_k", up_to_twice_all, 4.0, at_0=codebook_size),
        param("top_p", UNIT, 4.0),
    )
    if has_guidance:
        return (*params, param("guidance_weight", POSITIVE, 2.0))
    check_null_class(given.guidance_weight, has_guidance)
    return params


def check_null_class(guidance_weight: float | None, null_class: bool) -> None:
    """Raises a ValueError where guidance is wanted of a network that has no null class."""
    if guidance_weight and not null_class:
        raise ValueError(
            "guidance_weight must be 0 or None for a network that was trained without a null class, "
            f"got {guidance_weight!r}"
        )


def num_decisions(grid_size: int, num_steps: int | None, tokens_per_decision: int | None) -> int:
    """Returns T = L / tokens_per_decision, by default one decision for each row of the grid.

    Raises:
        ValueError: if the tokens do not divide evenly, or `num_steps` is given and another number.
    """
    length = grid_size**2
    size = grid_size if tokens_per_decision is None else tokens_per_decision
    if size < 1 or length % size:
        raise ValueError(f"tokens_per_decision must divide the {length} tokens of an image, got {size}")
    horizon = length // size
    if num_steps not in (None, horizon):
        raise ValueError(
            f"num_steps must be {length} tokens / {size} tokens_per_decision = {horizon}, or None, got {num_steps}"
        )
    return horizon


def sampler_of(
    part: str,
    usual: Settings,
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
    schedule: str | None = None,
) -> RasterSampler:
    """Returns the sampler of a backbone's transformer, named by `part`, and its tokenizer.

    The settings of its hand-crafted schedule are explained at `schedule_params`, where they come from at
    `genenv.tiers.schedule_settings`.
    """
    settings = schedule_settings(
        backbone,
        part,
        schedule,
        guidance_weight=guidance_weight,
        top_k=top_k,
        top_p=top_p,
        token_temperature=token_temperature,
    )
    transformer: RasterTransformer = load_part(part, backbone).to(device, dtype)
    tokenizer = load_part("vq", backbone).to(device)
    grid_size, codebook_size = transformer.grid_size, transformer.codebook_size
    horizon = num_decisions(grid_size, num_steps, tokens_per_decision)
    side = grid_size * tokenizer.downsampling
    params = schedule_params(horizon, codebook_size, Settings(**settings), usual, transformer.null_class)
    params = residual_margins(params, schedule)
    return RasterSampler(
        torch.compile(transformer.read) if compile else transformer.read,
        transformer.new_cache,
        tokenizer.decode,
        params,
        grid_size=grid_size,
        codebook_size=codebook_size,
        condition=Labels(transformer.num_classes),
        feature_dim=transformer.embed_dim,
        image_shape=(tokenizer.image_channels, side, side),
        needs_features=needs_features,
    )


make_sampler = functools.partial(sampler_of, "llamagen", LLAMAGEN)
"""(backbone, num_steps, ...) -> LlamaGen's sampler; see `sampler_of`."""
