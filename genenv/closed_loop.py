"""The generators' plain loops, as their released code runs them: what the environments are compared with.

Same networks, hand-crafted schedule and random numbers as an episode, so that the images are the same; no environment
and no states between the decisions. Where the released loop spends more network calls than it needs, so does this one:

- MaskGIT (AdaGen): guidance takes two calls, and the class's is made once more after the last decision.
- DiT and SiT (AdaGen): guidance takes two calls.
- VAR (AdaGen) and LlamaGen: guidance takes one call, on both halves as one batch. So it does for VQGAN, whose released
  loop knows no guidance.

With `separate=True` every paradigm's loop is as simple as can be: two calls wherever there is guidance, and one more
pair of them after the last decision, where the next step would begin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from genenv.actions import Schedule
from genenv.conditions import Condition, both
from genenv.envs.maskgit import MaskGITSampler
from genenv.envs.ode import ODESampler
from genenv.envs.raster_ar import RasterSampler
from genenv.envs.var import VARSampler
from genenv.filters import at_temperature
from genenv.protocols import Context, Sampler
from genenv.rng import BatchRng, categorical, gumbel
from genenv.schedules import ScheduleParam, handcrafted
from genenv.solvers import Evaluation


@torch.no_grad()
def closed_loop(sampler: Sampler, context: Context, rng: BatchRng, separate: bool = False) -> Tensor:
    """Returns the images (N, C, H, W) in [0, 1] of the hand-crafted schedule.

    Args:
        sampler: whose networks and settings are used, one of the types in `LOOPS`.
        context: (N,) int64.
        rng: the streams of the N images.
        separate: two guidance calls and a redundant pair at the end, in place of what the released loop does.
    """
    return LOOPS[type(sampler)](sampler, context, rng, separate)


def hand_crafted_params(params: Sequence[ScheduleParam], context: Context) -> list[Schedule]:
    """Returns the hand-crafted schedule, {name: (N,) float64} for each decision."""
    names = [param.name for param in params]
    table = handcrafted(params).to(context.device)  # (T, A)
    return [dict(zip(names, row[:, None].expand(-1, len(context)), strict=True)) for row in table]


def _maskgit(sampler: MaskGITSampler, context: Context, rng: BatchRng, separate: bool) -> Tensor:
    given, null = both(sampler.condition, context).chunk(2)
    tokens = torch.full((len(context), sampler.length), sampler.mask_id, device=context.device)
    sampled = tokens
    conditional, _ = sampler.network(tokens, given)
    for t, params in enumerate(hand_crafted_params(sampler.params, context)):
        unconditional, _ = sampler.network(tokens, null)
        weight = params["guidance_weight"].float()[:, None, None]
        logits = conditional.float() + weight * (conditional.float() - unconditional.float())
        token_uniform, mask_uniform = rng.at(t).uniform(2, sampler.length).unbind(1)
        masked = tokens == sampler.mask_id
        drawn = categorical(at_temperature(logits, params["token_temperature"]), token_uniform)
        sampled = torch.where(masked, drawn, tokens)
        score = logits.log_softmax(-1).gather(-1, sampled[..., None])[..., 0]
        confidence = score + params["mask_temperature"].float()[:, None] * gumbel(mask_uniform).float()
        confidence = confidence.masked_fill(~masked, math.inf)
        num_masked = (params["mask_ratio"] * sampler.length).floor().long().clamp(max=sampler.length - 1)
        cutoff = confidence.sort(-1).values.gather(-1, num_masked[:, None])
        tokens = sampled.masked_fill(confidence < cutoff, sampler.mask_id)
        conditional, _ = sampler.network(tokens, given)
    if separate:
        sampler.network(tokens, null)
    return sampler.detokenise(sampled.view(-1, sampler.grid_size, sampler.grid_size)).float()


def _var(sampler: VARSampler, context: Context, rng: BatchRng, separate: bool) -> Tensor:
    transformer, quantiser, last = sampler.transformer, sampler.quantiser, sampler.horizon - 1
    groups = _condition_groups(sampler.condition, context, separate)
    caches = [transformer.new_cache(len(condition)) for condition in groups]
    latents = torch.zeros(len(context), *quantiser.latent_shape, device=context.device)
    maps = torch.zeros(len(context), 0, quantiser.latent_shape[0], device=context.device)

    def predict(scale: int) -> Tensor:
        repeats = len(groups[0]) // len(context)
        return torch.cat(
            [
                transformer(maps.repeat(repeats, 1, 1), condition, scale, cache)[0].float()
                for condition, cache in zip(groups, caches, strict=True)
            ]
        )

    for scale, params in enumerate(hand_crafted_params(sampler.params, context)):
        conditional, unconditional = predict(scale).chunk(2)
        weight = (params["guidance_weight"] * (scale / max(last, 1))).float()[:, None, None]
        logits = conditional + weight * (conditional - unconditional)
        logits = sampler.filtered(logits, params)
        tokens = categorical(logits, rng.at(scale).uniform(logits.shape[1]))
        latents = latents + quantiser.expand(quantiser.embedding(tokens), scale)
        if scale < last:
            maps = quantiser.shrink(latents, scale + 1)
    if separate:
        predict(last)
    return sampler.tokenizer.decode(latents)


def _raster(sampler: RasterSampler, context: Context, rng: BatchRng, separate: bool) -> Tensor:
    read, new_cache = sampler.read, sampler.new_cache
    assert read is not None
    assert new_cache is not None
    if sampler.has_guidance:
        groups = _condition_groups(sampler.condition, context, separate)
    else:
        groups = [sampler.condition.given(context)]
    caches = [new_cache(len(condition)) for condition in groups]
    tokens, newest = [], context.new_zeros(len(context), 0)

    def predict(position: int) -> Tensor:
        repeats = len(groups[0]) // len(context)
        return torch.cat(
            [
                read(
                    newest.repeat(repeats, 1),
                    condition if position == 0 else None,
                    position,
                    cache,
                    slice(None),
                )[0].float()
                for condition, cache in zip(groups, caches, strict=True)
            ]
        )

    for t, params in enumerate(hand_crafted_params(sampler.params, context)):
        for uniform in rng.at(t).uniform(sampler.tokens_per_decision).unbind(1):
            logits = predict(len(tokens))
            if sampler.has_guidance:
                conditional, unconditional = logits.chunk(2)
                weight = params["guidance_weight"].float()[:, None]
                logits = conditional + weight * (conditional - unconditional)
            newest = categorical(sampler.filtered(logits, params), uniform)[:, None]
            tokens.append(newest)
    if separate:
        predict(len(tokens) - 1)
    grid = torch.cat(tokens, dim=1).view(-1, sampler.grid_size, sampler.grid_size)
    return sampler.detokenise(grid).float()


def _ode(sampler: ODESampler, context: Context, rng: BatchRng, separate: bool) -> Tensor:
    (given, null), guided = both(sampler.condition, context).chunk(2), sampler.guided_channels
    latents, memory = sampler.noise(rng), None
    first, *decisions = hand_crafted_params(sampler.params, context)
    time = sampler.path.limit(first["time"])
    for step, params in enumerate(decisions, start=1):
        weight, rule = params["guidance_weight"].float()[:, None, None, None], sampler.rule(step)
        goal = sampler.path.limit(params["time"], time)
        for _ in range(rule.per_decision):
            network_time = (sampler.time_scale * time).float()
            conditional, _ = sampler.network(latents, network_time, given)
            unconditional, _ = sampler.network(latents, network_time, null)
            output = conditional.float() + weight * (conditional.float() - unconditional.float())
            output[:, guided:] = conditional[:, guided:]
            now = Evaluation(latents, time, output)
            latents, memory = rule.step(sampler.path, now, memory, goal)
            time = goal
    if separate:
        sampler.network(latents, (sampler.time_scale * time).float(), given)
        sampler.network(latents, (sampler.time_scale * time).float(), null)
    return sampler.decoder(latents).float()


def _condition_groups(condition: Condition, context: Context, separate: bool) -> list[Tensor]:
    """Returns what the network is given with the context and without: for two calls, or for one."""
    rows = both(condition, context)
    return list(rows.chunk(2)) if separate else [rows]


LOOPS: dict[type, Callable[[Any, Context, BatchRng, bool], Tensor]] = {
    MaskGITSampler: _maskgit,
    VARSampler: _var,
    RasterSampler: _raster,
    ODESampler: _ode,
}
"""Paradigm -> its loop; DiT and SiT share one."""
