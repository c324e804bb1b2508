"""Reference vectors of VAR: the transformer with AdaGen's loop and the original one, and the multi-scale tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genenv.envs.var import VARSampler, resize, schedule_params
from genenv.models.var import VARTransformer
from genenv.models.var_vqvae import VARVQVAE
from genenv.parity.fixture import Fixture, Record, Result, close, equal
from genenv.rng import BatchRng

ACTIONS = {
    "guidance_weight": "cfg",
    "top_k": "top_k",
    "top_p": "top_p",
    "token_temperature": "manual_samp_temp",
}
"""Schedule parameter -> its name in the reference."""

POLICY_SIDE = 16
"""AdaGen's policy sees every hidden map at 16 x 16."""


def transformer(fixture: Fixture) -> VARTransformer:
    """Returns the reference's transformer."""
    shape, fixed = fixture.config["constructor"], fixture.config["constructor_fixed"]
    vocab_size = fixture.state_dict["head.weight"].shape[0]
    z_channels = fixture.state_dict["word_embed.weight"].shape[1]
    model = VARTransformer(
        fixture.config["generator"]["patch_nums"],
        vocab_size,
        z_channels,
        embed_dim=shape["embed_dim"],
        depth=shape["depth"],
        num_heads=shape["num_heads"],
        mlp_ratio=fixed["mlp_ratio"],
        num_classes=shape["num_classes"],
        shared_aln=fixed["shared_aln"],
    )
    return fixture.load(model)


def tokenizer(fixture: Fixture) -> VARVQVAE:
    """Returns the reference's tokenizer."""
    shape = fixture.config["constructor"]
    model = VARVQVAE(
        fixture.config["patch_nums"],
        ch=shape["ch"],
        z_channels=shape["z_channels"],
        vocab_size=shape["vocab_size"],
    )
    return fixture.load(model)


def sampler(fixture: Fixture) -> VARSampler:
    """Returns the environment's sampler over the reference's networks, with its top-k rule."""
    network = transformer(fixture)
    vqvae = tokenizer(fixture.sibling(fixture.config["generator"]["vqvae"]))
    params = schedule_params(len(network.patch_nums), network.vocab_size)
    return VARSampler(network, vqvae, params, top_k_rule="released", needs_features=True)


def params_at(rollout: Record, t: int) -> dict[str, Tensor]:
    """Returns the recorded schedule parameters {name: (N,)} of a decision."""
    return {name: rollout[f"action.{key}"][t].double() for name, key in ACTIONS.items()}


@torch.no_grad()
def check_var(fixture: Fixture) -> Iterator[Result]:
    """The transformer's logits, then every decision of AdaGen's loop and of the original sampler, and their images."""
    env, io = sampler(fixture), fixture.tensors("io")
    logits, _ = env.transformer(io["x_BLCv_wo_first_l"], io["label"])
    yield close("logits", logits, io["logits"])

    rollout = fixture.tensors("rollout")
    yield from fixture.expect(
        {
            "constructor_fixed.norm_eps": 1e-6,
            "constructor_fixed.attn_l2_norm": True,
            "generator.gen_steps": env.horizon,
            "generator.batch": len(rollout["contexts"]),
            "generator.null_class": env.transformer.num_classes,
        }
    )
    fixture.ignore("constructor_fixed.cond_drop_rate", "official_margins")
    state = env.start(rollout["contexts"], BatchRng(torch.arange(len(rollout["contexts"]))))
    for t in range(env.horizon):
        params = params_at(rollout, t)
        assert state.prediction is not None
        features, recorded = resize(state.prediction.hidden, POLICY_SIDE), rollout[f"feat_{t}"]
        stride = features.shape[1] // recorded.shape[1]
        yield close(f"features, decision {t}", features[:, ::stride], recorded, 1e-3)
        logits = env.guided_logits(state, params["guidance_weight"])
        yield close(f"guided logits, decision {t}", logits, rollout[f"guided_logits_{t}"], 1e-3)
        state = env.decide(state, params, rollout[f"token_uniform_{t}"].double())
        yield equal(f"tokens, decision {t}", state.tokens, rollout[f"idx_{t}"])
        yield close(f"accumulated map, decision {t}", state.latents, rollout[f"f_hat_{t}"], 1e-3)
    yield close("images", env.decode(state), rollout["images"], 1e-3)

    recorded = fixture.tensors("rollout_official")
    for i, case in enumerate(fixture.config["official_cases"]):
        rollout = recorded.under(f"case{i}.")
        values = {
            "guidance_weight": case["cfg"],
            "top_k": case["top_k"],
            "top_p": case["top_p"] or 1.0,  # there 0 keeps every token
            "token_temperature": 1.0,
        }
        batch = len(rollout["contexts"])
        params = {name: torch.full((batch,), value).double() for name, value in values.items()}
        state = env.start(rollout["contexts"], BatchRng(torch.arange(batch)))
        for t in range(env.horizon):
            state = env.decide(state, params, rollout[f"token_uniform_{t}"].double())
            yield equal(f"tokens, original sampler, case {i}, scale {t}", state.tokens, rollout[f"idx_{t}"])
        yield close(f"images, original sampler, case {i}", env.decode(state), rollout["images"], 1e-3)


@torch.no_grad()
def check_var_vqvae(fixture: Fixture) -> Iterator[Result]:
    """The tokenizer's single calls; the reference's pixels are in [-1, 1]."""
    io, model = fixture.tensors("io"), tokenizer(fixture)
    yield from fixture.expect({"constructor.share_quant_resi": 4})
    images = (io["image_in"] + 1) / 2
    yield close("encoder", model.latents(images), io["encoder_f"])
    tokens = model.encode(images)
    yield equal("tokens", tokens, io["encode_idx"])
    *_, accumulated = model.quantize.accumulate(tokens)
    yield close("accumulated map", accumulated, io["vae_fhat"])
    yield close("reconstruction", 2 * model.decode(accumulated) - 1, io["reconstructed"])
    steps = list(model.quantize.accumulate(io["token_idx"]))
    yield close("accumulated map of tokens", steps[-1], io["token_fhat"])
    yield close("image of tokens", 2 * model.decode(steps[-1]) - 1, io["token_image"])
    yield close("transformer input", model.quantize.maps(steps), io["token_var_input"])
    for scale, latents in enumerate(steps[:-1]):
        recorded = io[f"next_input_{scale}"].flatten(2).transpose(1, 2)
        yield close(f"input after scale {scale}", model.quantize.shrink(latents, scale + 1), recorded)
    last = len(steps) - 1
    yield close(f"map after scale {last}", steps[-1], io[f"next_input_{last}"])
