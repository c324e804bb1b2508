"""Reference vectors of LlamaGen: the transformer with its sampling loop, and the VQ tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from genenv.conditions import Labels
from genenv.envs.raster_ar import RasterSampler, schedule_params
from genenv.models.llamagen import LlamaGenTransformer, rotary_table
from genenv.models.llamagen_vq import LlamaGenVQ
from genenv.parity.fixture import Fixture, Record, Result, close, equal
from genenv.rng import BatchRng


def transformer(fixture: Fixture) -> LlamaGenTransformer:
    """Returns the reference's transformer."""
    shape = fixture.config["constructor"]
    model = LlamaGenTransformer(
        grid_size=math.isqrt(shape["block_size"]),
        codebook_size=shape["vocab_size"],
        embed_dim=shape["dim"],
        depth=shape["n_layer"],
        num_heads=shape["n_head"],
        multiple_of=shape["multiple_of"],
        num_classes=shape["num_classes"],
    )
    return fixture.load(model)


def tokenizer(fixture: Fixture) -> LlamaGenVQ:
    """Returns the reference's tokenizer."""
    shape = fixture.config["constructor"]
    model = LlamaGenVQ(
        ch=shape["ch"],
        ch_mult=shape["encoder_ch_mult"],
        z_channels=shape["z_channels"],
        codebook_size=shape["codebook_size"],
        codebook_dim=shape["codebook_embed_dim"],
    )
    return fixture.load(model)


def sampler(network: LlamaGenTransformer, vq: LlamaGenVQ, needs_features: bool) -> RasterSampler:
    """Returns the environment's sampler over the reference's networks, with a decision for each token."""
    side = network.grid_size * vq.downsampling
    return RasterSampler(
        network.read,
        network.new_cache,
        vq.decode,
        schedule_params(network.grid_size**2, network.codebook_size),
        grid_size=network.grid_size,
        codebook_size=network.codebook_size,
        condition=Labels(network.num_classes),
        feature_dim=network.embed_dim,
        image_shape=(3, side, side),
        needs_features=needs_features,
    )


def settings(fixture: Fixture, rollout: Record, horizon: int) -> dict[str, Mapping[str, Tensor]]:
    """Returns the reference's groups, {group: {parameter: (T,)}}."""
    groups: dict[str, Mapping[str, Tensor]] = {}
    for i, case in enumerate(fixture.config["cases"]):
        interval = case["cfg_interval"]
        last = horizon if interval < 0 else interval + 1  # the interval counts from the second token
        guided = torch.arange(horizon) <= last
        constant = {name: torch.full((horizon,), case[name]) for name in ("temperature", "top_k", "top_p")}
        groups[f"case{i}"] = constant | {"cfg_scale": torch.where(guided, case["cfg_scale"], 1.0)}
    groups["varying"] = rollout.under("varying.action.")
    return groups


def params_at(group: Mapping[str, Tensor], t: int, batch: int, codebook_size: int) -> dict[str, Tensor]:
    """Returns the schedule parameters {name: (N,)} of a decision."""
    top_k = group["top_k"][t]
    params = {
        "token_temperature": group["temperature"][t],
        "top_k": torch.where(top_k > 0, top_k, codebook_size),
        "top_p": group["top_p"][t],
        "guidance_weight": (group["cfg_scale"][t] - 1).clamp(min=0),
    }
    return {name: value.double().expand(batch) for name, value in params.items()}


@torch.no_grad()
def check_llamagen(fixture: Fixture) -> Iterator[Result]:
    """The transformer's logits, then every rollout: predicted early for the features, and as late as possible."""
    io, network = fixture.tensors("io"), transformer(fixture)
    yield from fixture.expect(
        {
            "constructor.model_type": "c2i",
            "constructor.cls_token_num": 1,
            "constructor.rope_base": 10000,
            "constructor.norm_eps": 1e-5,
            "constructor.ffn_dim_multiplier": None,
            "constructor.n_kv_head": None,
            "generator.grid": [network.grid_size] * 2,
            "generator.null_class": network.num_classes,
        }
    )
    fixture.ignore("constructor.class_dropout_prob")
    table = io["freqs_cis"]
    positions = torch.arange(len(table))
    yield close("rotary table", rotary_table(positions, network.grid_size, 2 * table.shape[1]), table)
    yield close("logits", network(io["idx"], io["label"])[0], io["logits"])

    rollout = fixture.tensors("rollout")
    vq = tokenizer(fixture.sibling(fixture.config["generator"]["tokenizer"]))
    early, late = sampler(network, vq, needs_features=True), sampler(network, vq, needs_features=False)
    for name, group in settings(fixture, rollout, early.horizon).items():
        recorded = rollout.under(f"{name}.")
        uniform = recorded["token_uniform"].double()
        batch, rng = len(uniform), BatchRng(torch.arange(len(uniform)))
        yield from fixture.expect({"generator.batch": batch})
        state, other = early.start(recorded["contexts"], rng), late.start(recorded["contexts"], rng)
        logits = []
        for t in range(early.horizon):
            params = params_at(group, t, batch, network.codebook_size)
            assert state.prediction is not None
            logits.append(state.prediction.guided(params["guidance_weight"]))
            state = early.decide(state, params, uniform[:, t, None])
            other = late.decide(other, params, uniform[:, t, None])
        yield close(f"guided logits, {name}", torch.stack(logits, dim=1), recorded["guided_logits"], 1e-3)
        yield equal(f"tokens, {name}", state.tokens, recorded["tokens"])
        yield equal(f"tokens, {name}, predicted late", other.tokens, recorded["tokens"])
        if "images" in recorded:
            images = ((recorded["images"] + 1) / 2).clamp(0, 1)
            yield close(f"images, {name}", early.decode(state), images, 1e-3)


@torch.no_grad()
def check_llamagen_vq(fixture: Fixture) -> Iterator[Result]:
    """The tokenizer's single calls."""
    io, model = fixture.tensors("io"), tokenizer(fixture)
    widths = fixture.config["constructor"]["encoder_ch_mult"]
    yield from fixture.expect({"constructor.decoder_ch_mult": widths, "constructor.codebook_l2_norm": True})
    codes = io["codes"].view(-1, *io["quant_entry"].shape[2:])
    yield close("codebook entries", model.quantize(codes), io["quant_entry"])
    yield close("decoded", model.decode_unclamped(codes), io["decoded"])
    images = (io["image_in"] + 1) / 2
    yield close("latents", model.latents(images), io["encoder_h"])
    tokens = model.encode(images)
    yield equal("tokens", tokens.flatten(), io["encode_indices"])
    yield close("encoded entries", model.quantize(tokens), io["encode_quant"])
