"""Reference vectors of MaskGIT: the transformer with its whole loop, and the VQGAN tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genenv.conditions import Labels
from genenv.envs.maskgit import MaskGITSampler, schedule_params
from genenv.models.maskgit import MaskGITTransformer
from genenv.models.maskgit_vqgan import MaskGITVQGAN
from genenv.parity.fixture import Fixture, Record, Result, close, equal
from genenv.rng import BatchRng

ACTIONS = {
    "mask_ratio": "manual_gen_ratios",
    "mask_temperature": "manual_temp",
    "token_temperature": "manual_samp_temp",
    "guidance_weight": "manual_cfg",
}
"""Schedule parameter -> its name in the reference."""


def transformer(fixture: Fixture) -> MaskGITTransformer:
    """Returns the reference's transformer."""
    shape = fixture.config["constructor"]
    model = MaskGITTransformer(
        grid_size=shape["img_size"],
        codebook_size=shape["codebook_size"],
        embed_dim=shape["embed_dim"],
        depth=shape["depth"],
        num_heads=shape["num_heads"],
        mlp_ratio=shape["mlp_ratio"],
        num_classes=shape["num_classes"] - 1,
    )
    return fixture.load(model)


def tokenizer(fixture: Fixture) -> MaskGITVQGAN:
    """Returns the reference's tokenizer."""
    shape = fixture.config["constructor"]
    model = MaskGITVQGAN(
        ch=shape["ddconfig"]["ch"],
        ch_mult=shape["ddconfig"]["ch_mult"],
        num_res_blocks=shape["ddconfig"]["num_res_blocks"],
        z_channels=shape["ddconfig"]["z_channels"],
        n_embed=shape["n_embed"],
    )
    return fixture.load(model)


def sampler(fixture: Fixture, tokenizer_fixture: Fixture, horizon: int) -> MaskGITSampler:
    """Returns the environment's sampler over the reference's networks."""
    network, vqgan = transformer(fixture), tokenizer(tokenizer_fixture)
    side = network.grid_size * vqgan.downsampling
    return MaskGITSampler(
        network,
        vqgan.decode,
        schedule_params(horizon, guidance_weight=1.0),
        grid_size=network.grid_size,
        codebook_size=network.codebook_size,
        condition=Labels(network.num_classes),
        feature_dim=network.embed_dim,
        image_shape=(3, side, side),
        needs_features=True,
    )


def params_at(rollout: Record, t: int) -> dict[str, Tensor]:
    """Returns the recorded schedule parameters {name: (N,)} of a decision."""
    return {name: rollout[f"action.{key}"][t].double() for name, key in ACTIONS.items()}


@torch.no_grad()
def check_maskgit(fixture: Fixture) -> Iterator[Result]:
    """The transformer's logits and features, then every decision of the rollout and its image."""
    io, network = fixture.tensors("io"), transformer(fixture)
    yield from fixture.expect(
        {
            "constructor.qkv_bias": False,
            "constructor.skip": True,
            "generator.seq_len": network.grid_size**2,
            "generator.grid": [network.grid_size] * 2,
            "generator.mask_ind": network.codebook_size,
            "generator.null_class": network.num_classes,
        }
    )
    # `drawn_ids` are also of places that were decided before, where draws are thrown away.
    fixture.ignore("constructor.use_checkpoint", "io_feat_stride", "drawn_ids")
    logits, features = network(io["masked_ids"], io["context"][:, 0])
    yield close("logits", logits, io["logits"])
    stride = features.shape[1] // io["feat"].shape[1]
    yield close("features", features[:, ::stride], io["feat"])
    rollout = fixture.tensors("rollout")
    horizon, batch, _ = rollout["sampled_ids"].shape
    yield from fixture.expect({"generator.gen_steps": horizon, "generator.batch": batch})
    env = sampler(fixture, fixture.sibling(fixture.config["generator"]["decoder"]), horizon)
    state = env.start(rollout["contexts"], BatchRng(torch.arange(batch)))
    for t in range(horizon):
        uniform, noise = rollout["token_uniform"][t].double(), rollout["confidence_gumbel"][t].double()
        state = env.decide(state, params_at(rollout, t), uniform, noise)
        yield equal(f"sampled tokens, decision {t}", state.sampled, rollout["sampled_ids"][t])
        yield equal(f"masked tokens, decision {t}", state.tokens, rollout["masked_ids"][t])
    yield close("images", env.decode(state), rollout["images"], 1e-3)


@torch.no_grad()
def check_maskgit_vqgan(fixture: Fixture) -> Iterator[Result]:
    """The tokenizer's single calls."""
    io, model = fixture.tensors("io"), tokenizer(fixture)
    shape = fixture.config["constructor"]["ddconfig"]
    yield from fixture.expect(
        {
            "constructor.embed_dim": shape["z_channels"],
            "constructor.ddconfig.double_z": False,
            "constructor.ddconfig.in_channels": model.image_channels,
            "constructor.ddconfig.out_ch": model.image_channels,
        }
    )
    # The converted network has no attention, whatever its configuration says, and any size of images will do.
    fixture.ignore(
        *(f"constructor.ddconfig.{name}" for name in ("attn_resolutions", "resolution", "dropout"))
    )
    yield close(
        "entries of codes", model.quantize.embedding(io["codes"]).permute(0, 3, 1, 2), io["quant_entry"]
    )
    yield close("decoded", model.decode_unclamped(io["codes"]), io["decoded"])
    yield close("encoder", model.encoder(io["image_in"]), io["encoder_out"])
    yield equal("tokens", model.encode(io["image_in"]).flatten(), io["encode_indices"])
    entries = model.quantize.embedding(model.encode(io["image_in"])).permute(0, 3, 1, 2)
    yield close("codebook entries", entries, io["encode_quant"])
