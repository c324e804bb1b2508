import copy
import json
import pickle
import re
import shutil
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from safetensors.torch import load_file, save_file

from genenv.conditions import Embeddings, Labels, both
from genenv.pipelines import load_pipeline
from genenv.rewards import available, make_reward
from genenv.solvers import Evaluation, VPTable, euler, per_image
from genenv.tiers import tier_of, write_manifest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from diffusers import DDIMScheduler, DiTPipeline, PNDMScheduler, StableDiffusionPipeline
from pipeline_folders import label_pipeline, prompt_pipeline

PROMPTS = ["a handwritten three", "Seven,  and a four!", "", "three " * 30]
N = len(PROMPTS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    prompt_pipeline(root / "prompts")
    label_pipeline(root / "labels")
    shutil.copytree(root / "prompts", root / "published")
    as_published(root / "published")
    return root


@pytest.fixture
def copy_of(folders, tmp_path):
    """Copies a folder, to be changed."""
    return lambda name: shutil.copytree(folders / name, tmp_path / name)


def change(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def as_published(folder):
    """Gives a folder the names and files of those that older libraries wrote, Stable Diffusion's among them."""
    (folder / "tokenizer" / "tokenizer.json").rename(folder / "whole.json")
    model = json.loads((folder / "whole.json").read_text())["model"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "tokenizer" / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (folder / "tokenizer" / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!"}))
    (folder / "whole.json").unlink()
    weights = folder / "text_encoder" / "model.safetensors"
    state = {f"text_model.{name}": value for name, value in load_file(weights).items()}
    positions = {"text_model.embeddings.position_ids": torch.arange(12)[None]}
    save_file(state | positions, weights, {"format": "pt"})
    config = json.loads((folder / "vae" / "config.json").read_text())
    del config["scaling_factor"]
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {
        re.sub(r"(?<=attentions\.0\.)(to_q|to_k|to_v|to_out\.0)", lambda match: old[match[0]], name): value
        for name, value in load_file(weights).items()
    }
    save_file(state, weights, {"format": "pt"})


def noise(shape, number=N):
    return torch.randn(number, *shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def ddim(pipeline, latents, context, num_steps, weight):
    """Returns the latents after DDIM without noise."""
    times = pipeline.times(num_steps).tolist()
    for now, then in zip(times, [*times[1:], None], strict=True):
        time = torch.full((len(latents),), now, dtype=torch.float64)
        output, _ = pipeline.network(
            latents.repeat(2, 1, 1, 1), time.repeat(2), both(pipeline.condition, context)
        )
        conditional, unconditional = output.chunk(2)
        guided = Evaluation(latents, time, conditional + weight * (conditional - unconditional))
        if then is None and pipeline.ends_at_data:
            latents = pipeline.path.data(latents, time, guided.output)
        else:
            latents, _ = euler(pipeline.path, guided, None, torch.full_like(time, then or 0.0))
    return latents


@pytest.mark.parametrize("name", ["prompts", "published"])
def test_prompts_are_embedded_as_stable_diffusion_does(folders, name):
    pipeline = load_pipeline(str(folders / name), PROMPTS)
    prompts, empty = StableDiffusionPipeline.from_pretrained(folders / name).encode_prompt(
        PROMPTS, "cpu", 1, True
    )
    assert isinstance(pipeline.condition, Embeddings)
    torch.testing.assert_close(pipeline.condition.prompts, prompts)
    torch.testing.assert_close(pipeline.condition.empty, empty[0])
    assert not torch.allclose(prompts[0], prompts[1])
    assert pipeline.context_names == tuple(PROMPTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_noise_is_what_the_unet_says(folders, dtype):
    pipeline = load_pipeline(str(folders / "prompts"), PROMPTS, dtype)
    latents, times = noise(pipeline.latent_shape), torch.tensor([0.0, 17.5, 400.0, 999.0])
    context = torch.tensor([2, 0, 1, 1])
    states = pipeline.condition.given(context)
    unet = StableDiffusionPipeline.from_pretrained(folders / "prompts").unet.to(dtype)
    middle = []
    unet.mid_block.register_forward_hook(lambda module, inputs, output: middle.append(output))
    network = pickle.loads(pickle.dumps(copy.deepcopy(pipeline.network)))
    with torch.no_grad():
        expected = unet(latents.to(dtype), times, encoder_hidden_states=states.to(dtype)).sample
        found, features = network(latents, times, states)
    assert torch.equal(found, expected.float())
    assert features.shape == (N, *network.feature_shape) == (N, 16, 16)
    assert torch.equal(features[:, 5], middle[0][:, :, 1, 1])


@pytest.mark.parametrize(
    ("schedule", "weight"),
    [
        ({"set_alpha_to_one": False, "steps_offset": 1}, 6.5),
        ({"set_alpha_to_one": True, "beta_schedule": "linear", "beta_end": 0.02}, 2.0),
        ({"timestep_spacing": "trailing", "beta_schedule": "squaredcos_cap_v2"}, 0.5),
        ({"prediction_type": "v_prediction", "steps_offset": 1}, 3.0),
        ({"num_train_timesteps": 50, "trained_betas": torch.linspace(0.001, 0.1, 50).tolist()}, 1.0),
    ],
    ids=["released", "to the data", "trailing", "velocity", "betas"],
)
def test_ddim_makes_the_images_of_stable_diffusion(copy_of, schedule, weight):
    folder = copy_of("prompts")
    change(folder / "scheduler" / "scheduler_config.json", clip_sample=False, **schedule)
    own, theirs = load_pipeline(str(folder), PROMPTS), StableDiffusionPipeline.from_pretrained(folder)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    latents = noise(own.latent_shape)

    def expected(output_type):
        kwargs = {"num_inference_steps": 5, "guidance_scale": 1 + weight, "latents": latents.clone()}
        return theirs(PROMPTS, output_type=output_type, **kwargs).images

    found = ddim(own, latents, torch.arange(N), 5, weight)
    torch.testing.assert_close(found, expected("latent"), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own.decoder(found), expected("pt"), rtol=1e-4, atol=1e-4)
    assert own.decoder(found).shape == (N, *own.image_shape)


@pytest.mark.parametrize("learned_sigma", [True, False])
def test_ddim_makes_the_images_of_a_dit(tmp_path, learned_sigma):
    label_pipeline(tmp_path, learned_sigma)
    own, theirs = load_pipeline(str(tmp_path)), DiTPipeline.from_pretrained(tmp_path)
    theirs.set_progress_bar_config(disable=True)
    assert isinstance(own.condition, Labels)
    assert own.context_names[17] == "class 17"
    labels = [1, 0, 999]
    kwargs = {"class_labels": labels, "guidance_scale": 4.0, "num_inference_steps": 5}
    expected = theirs(**kwargs, generator=torch.Generator().manual_seed(1), output_type="np").images
    found = own.decoder(ddim(own, noise(own.latent_shape, 3), torch.tensor(labels), 5, 3.0))
    torch.testing.assert_close(found, torch.from_numpy(expected).permute(0, 3, 1, 2), rtol=1e-4, atol=1e-4)
    torch.manual_seed(4)  # labels are dropped in training alone
    assert torch.equal(
        found, own.decoder(ddim(own, noise(own.latent_shape, 3), torch.tensor(labels), 5, 3.0))
    )


def test_the_velocity_is_turned_into_the_noise(copy_of):
    folder = copy_of("prompts")
    latents, times = noise((4, 8, 8)), torch.tensor([3.0, 80.5, 400.0, 900.0])
    plain = load_pipeline(str(folder), PROMPTS)
    change(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    turned = load_pipeline(str(folder), PROMPTS)
    states, path = plain.condition.given(torch.arange(N)), plain.path
    with torch.no_grad():
        velocity, found = (each.network(latents, times, states)[0] for each in (plain, turned))
    data = path.data(latents, times.double(), found)
    alpha, sigma = (per_image(part(times.double()), latents) for part in (path.alpha, path.sigma))
    torch.testing.assert_close(alpha * found - sigma * data, velocity)
    torch.testing.assert_close(alpha * data + sigma * found, latents)


@pytest.mark.parametrize(
    "entries", [{}, {"scaling_factor": 0.7}, {"shift_factor": 0.3}, {"shift_factor": None}]
)
def test_latents_are_decoded_by_the_scale_of_the_autoencoder(copy_of, entries):
    folder = copy_of("published")
    change(folder / "vae" / "config.json", **entries)
    pipeline = load_pipeline(str(folder), PROMPTS, torch.bfloat16)
    latents, vae = noise(pipeline.latent_shape), pipeline.decoder.vae
    scale, shift = entries.get("scaling_factor", 0.18215), entries.get("shift_factor") or 0.0
    with torch.no_grad():
        expected = (vae.decode(latents / scale + shift).sample + 1) / 2
        torch.testing.assert_close(pipeline.decoder(latents), expected.clamp(0, 1))
        vae.bfloat16()
        torch.testing.assert_close(pipeline.decoder(latents), expected.clamp(0, 1), rtol=0, atol=0.05)


def test_times_are_those_of_the_folder(copy_of):
    folder = copy_of("prompts")
    pipeline = load_pipeline(str(folder), PROMPTS)
    assert isinstance(pipeline.path, VPTable)
    assert pipeline.times(4).tolist() == [751, 501, 251, 1]
    alphas = PNDMScheduler.from_pretrained(folder / "scheduler").alphas_cumprod.double()
    torch.testing.assert_close(pipeline.path.alpha(pipeline.times(4)) ** 2, alphas[[751, 501, 251, 1]])
    assert not pipeline.ends_at_data
    for number, rule in ((0, "in 1..1000"), (1001, "in 1..1000"), (1000, "first time lies in 0..999")):
        with pytest.raises(ValueError, match=rf"num_steps must .*{rule}, got {number}$"):
            pipeline.times(number)


def test_a_pipeline_survives_pickle(folders):
    pipeline = load_pipeline(str(folders / "prompts"), PROMPTS)
    other = pickle.loads(pickle.dumps(pipeline))
    latents, context = noise(pipeline.latent_shape), torch.arange(N)
    assert torch.equal(ddim(other, latents, context, 3, 1.0), ddim(pipeline, latents, context, 3, 1.0))


def test_parameters_learn_where_they_are_to(folders):
    for trainable in (False, True):
        pipeline = load_pipeline(str(folders / "prompts"), PROMPTS, trainable=trainable)
        assert {p.requires_grad for p in pipeline.network.parameters()} == {trainable}
        assert not any(p.requires_grad for p in pipeline.decoder.vae.parameters())
        assert not pipeline.network.training


@pytest.mark.parametrize(
    ("name", "prompts", "rule"),
    [
        ("prompts", None, "a list of texts, got None"),
        ("prompts", [], r"a list of texts, got \[\]"),
        ("prompts", "a cat", "a list of texts, got 'a cat'"),
        ("prompts", ["a cat", 3], r"a list of texts, got \['a cat', 3\]"),
        ("labels", ["a cat"], r"left out for a network of labels, got \['a cat'\]"),
    ],
)
def test_prompts_are_for_networks_of_prompts(folders, name, prompts, rule):
    with pytest.raises(
        ValueError, match=f"^prompts must be {rule}; the generator is {re.escape(str(folders))}"
    ):
        load_pipeline(str(folders / name), prompts)


def test_a_folder_of_something_else_is_refused(copy_of, tmp_path):
    with pytest.raises(ValueError, match=r"must hold the model_index\.json of a pipeline with a UNet2DCond"):
        load_pipeline(str(tmp_path), PROMPTS)
    folder = copy_of("prompts")
    change(folder / "model_index.json", unet=["diffusers", "UNet2DModel"])
    with pytest.raises(ValueError, match=r"must hold the model_index\.json of a pipeline with a UNet2DCond"):
        load_pipeline(str(folder), PROMPTS)


FILES = [
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer_config.json",
    "scheduler/scheduler_config.json",
]


@pytest.mark.parametrize("file", [*FILES, "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "not finite"])
def test_a_missing_or_damaged_file_is_named(copy_of, file, damage):
    folder = copy_of("prompts")
    path = folder / file
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif path.suffix == ".safetensors":
        state = load_file(path)
        next(iter(state.values())).view(-1)[0] = torch.nan
        save_file(state, path, {"format": "pt"})
    else:
        return
    with pytest.raises(ValueError, match=re.escape(str(path.parent))) as refused:
        load_pipeline(str(folder), PROMPTS)
    assert path.name in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_not_all_there_are_refused(copy_of, part):
    folder = copy_of("prompts")
    (path,) = (folder / part).glob("*.safetensors")
    state = load_file(path)
    state.pop(max(state))
    save_file(state, path, {"format": "pt"})
    with pytest.raises(ValueError, match=re.escape(str(folder / part))):
        load_pipeline(str(folder), PROMPTS)


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("unet", "_class_name", "UNet2DModel"),
        ("unet", "sample_size", None),
        ("unet", "sample_size", [8, 0]),
        ("unet", "in_channels", 9),  # of a pipeline that fills holes
        ("unet", "out_channels", 8),
        ("unet", "addition_embed_type", "text_time"),  # Stable Diffusion XL's
        ("unet", "num_class_embeds", 10),
        ("unet", "attention_head_dim", "x"),
        ("unet", "quantization_config", {"quant_method": "bitsandbytes"}),
        ("vae", "_class_name", "AutoencoderTiny"),
        ("vae", "latent_channels", 16),
        ("vae", "scaling_factor", 0),
        ("vae", "scaling_factor", "x"),
        ("vae", "shift_factor", True),
        ("vae", "block_out_channels", []),
        ("vae", "quantization_config", {"quant_method": "bitsandbytes"}),
        ("text_encoder", "architectures", ["T5EncoderModel"]),
        ("tokenizer", "model_max_length", 13),
        ("tokenizer", "pad_token", 3),
        ("scheduler", "prediction_type", "sample"),
        ("scheduler", "num_train_timesteps", 1),
        ("scheduler", "trained_betas", "x"),
        ("scheduler", "beta_end", "x"),
        ("scheduler", "timestep_spacing", "x"),
        ("scheduler", "steps_offset", -1),
        ("scheduler", "rescale_betas_zero_snr", True),
    ],
)
def test_what_cannot_be_meant_is_refused_with_file_and_entry(copy_of, file, name, value):
    folder = copy_of("prompts")
    (path,) = (folder / file).glob("*config.json")
    change(path, **{name: value})
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: \w+ must be .*, got "):
        load_pipeline(str(folder), PROMPTS)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"beta_schedule": "planted"}, "must be the configuration of a scheduler: NotImplementedError"),
        ({"beta_start": 0.5, "beta_end": 2.0}, r"the betas must lie in \(0, 1\)"),
        ({"beta_start": 0.0, "beta_end": 0.0}, r"the betas must lie in \(0, 1\)"),
    ],
)
def test_a_schedule_that_is_none_is_refused(copy_of, entries, message):
    folder = copy_of("prompts")
    path = folder / "scheduler" / "scheduler_config.json"
    change(path, **entries)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}:? {message}"):
        load_pipeline(str(folder), PROMPTS)


def test_a_text_encoder_of_another_width_is_refused(tmp_path):
    prompt_pipeline(tmp_path / "sd", text_width=24)
    with pytest.raises(ValueError, match=r"unet/config\.json: cross_attention_dim must be .* 24, got 16"):
        load_pipeline(str(tmp_path / "sd"), PROMPTS)


def test_flow_matching_is_another_path(copy_of):
    folder = copy_of("prompts")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}))
    with pytest.raises(ValueError, match="beta_schedule must be that of a diffusion, got None"):
        load_pipeline(str(folder), PROMPTS)


def test_names_of_labels_are_there_for_all_or_none(copy_of):
    folder = Path(copy_of("labels"))
    change(folder / "model_index.json", id2label={"0": "tench", "2": "shark"})
    with pytest.raises(ValueError, match="id2label must name each of 1000 labels"):
        load_pipeline(str(folder))
    change(folder / "model_index.json", id2label=None)
    assert load_pipeline(str(folder)).context_names == tuple(map(str, range(1000)))


def test_the_older_name_of_the_transformer_is_known(copy_of):
    folder = copy_of("labels")
    expected = load_pipeline(str(folder)).network.state_dict()
    change(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    change(folder / "transformer" / "config.json", _class_name="Transformer2DModel", num_vector_embeds=None)
    found = load_pipeline(str(folder)).network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_pipeline_has_a_tier(folders, copy_of):
    tier = tier_of(str(folders / "prompts"))
    assert (tier.name, tier.image_shape, tuple(tier.class_names)) == ("stable-diffusion", (3, 16, 16), ())
    assert available(str(folders / "prompts")) == ["clip", "hpsv2", "hpsv2.0", "pickscore", "png_size"]
    assert tier.prompts() == ()
    for what in ("judges", "real_images", "discriminator"):
        with pytest.raises(ValueError, match="tier 'stable-diffusion' has no"):
            tier.need(what)
    folder = copy_of("labels")
    tier = tier_of(str(folder))
    assert (tier.name, tier.image_shape) == ("dit", (3, 16, 16))
    assert tier.prompts()[17] == "a photo of a class 17"
    change(folder / "model_index.json", id2label=None)
    assert list(tier_of(str(folder)).class_names) == [str(label) for label in range(1000)]
    assert available(str(folder)) == ["png_size"]


def test_a_pipeline_that_is_damaged_has_no_tier(copy_of):
    folder = copy_of("prompts")
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"vae/config\.json is missing; a pipeline's save_pretrained"):
        tier_of(str(folder))
    write_manifest(folder)  # a folder of our own may hold anything else
    assert tier_of(str(folder)).name == "digits"


def test_an_environment_of_other_networks_refuses_a_pipeline(folders):
    for env_id in ("ART/Clock-v0", "AdaGen/DiT-v0"):
        with pytest.raises(ValueError, match=re.escape(repr(str(folders / "prompts")))):
            gym.make_vec(env_id, backbone=str(folders / "prompts"))


def test_a_scorer_without_prompts_says_how_to_give_them(folders):
    with pytest.raises(
        ValueError, match=r"reward 'clip' needs texts, .*: give the environment prompts=\[\.\.\.\]"
    ):
        make_reward("clip", str(folders / "prompts"), "cpu")
