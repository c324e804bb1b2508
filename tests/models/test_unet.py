import json
import re
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from safetensors.torch import load_file, save_file

from genenv.check import check
from genenv.models.unet import load_unet
from genenv.rollout import run_episode, static_actor
from genenv.solvers import VPTable
from genenv.tiers import tier_of

pytest.importorskip("diffusers")
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

SIZE, N = 8, 3
CLOCK = "ART/Clock-v0"
MISSING = r"must hold a UNet2DModel in safetensors and a scheduler_config\.json"


def network(classes=None):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=SIZE,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        num_class_embeds=classes,
    ).eval()


@pytest.fixture(params=["pipeline", "side by side"])
def folder(request, tmp_path):
    """The network in either layout that diffusers' models are published in."""
    if request.param == "pipeline":
        DDPMPipeline(network(), DDPMScheduler()).save_pretrained(tmp_path)
    else:
        network().save_pretrained(tmp_path)
        DDPMScheduler().save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_a_table_holds_the_steps_noise_levels(schedule):
    alphas = DDPMScheduler(beta_schedule=schedule).alphas_cumprod.double()
    path = VPTable.of(alphas)
    steps = torch.tensor([0.0, 1, 17, 500, 998, 999], dtype=torch.float64)
    torch.testing.assert_close(path.alpha(steps) ** 2, alphas[steps.long()], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(path.sigma(steps) ** 2, 1 - alphas[steps.long()], rtol=1e-9, atol=1e-12)
    between = torch.tensor([0.25, 3.5, 700.1], dtype=torch.float64)
    for times in (steps, between):
        torch.testing.assert_close(path.time_of(path.noise_level(times)), times)
    beyond = torch.tensor([path.levels[0] / 2, 2 * path.levels[-1]])
    assert path.time_of(beyond).tolist() == [0, 999]


def test_an_euler_step_is_that_of_diffusers_ddim(folder):
    # DDIM is Euler's rule in x = data + sigma noise, here between two steps of its own
    unet = load_unet(folder)
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(10)
    alphas = scheduler.alphas_cumprod.double()
    latents = torch.randn(N, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        noise = unet.model(latents, 500).sample
        expected = scheduler.step(noise, 500, latents).prev_sample
        sigma, below = ((1 / alphas[t] - 1).sqrt().expand(N) for t in (500, 400))
        x = latents / alphas[500].sqrt().float()
        data = unet(x, sigma, torch.zeros(N, dtype=torch.int64))
        slope = (x - data) / sigma[0].float()
        found = x + (below - sigma)[0].float() * slope
    torch.testing.assert_close(found * alphas[400].sqrt().float(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("folder", "derivative"),
    [("pipeline", "jvp"), ("side by side", "finite-difference")],
    indirect=["folder"],
)
def test_a_folder_of_diffusers_keeps_every_promise(folder, derivative):
    assert tier_of(folder).image_shape == (3, SIZE, SIZE)
    kwargs = {"backbone": folder, "num_steps": 2, "reward": "default", "derivative": derivative}
    assert set(dict(check(CLOCK, **kwargs)).values()) == {None}
    env = gym.make_vec(CLOCK, num_envs=N, **kwargs)
    sampler = env.unwrapped.sampler
    alphas = DDPMScheduler().alphas_cumprod.double()
    assert sampler.period == 80.0
    assert sampler.flow.sigma_min == pytest.approx((1 / alphas[0] - 1).sqrt().item())


def test_labels_reach_the_network(tmp_path):
    DDPMPipeline(network(classes=4), DDPMScheduler()).save_pretrained(tmp_path)
    env = gym.make_vec(CLOCK, num_envs=2, backbone=str(tmp_path), contexts=[1, 3], num_steps=2, sigma_max=5)
    assert len(env.unwrapped.contexts) == 4
    one = run_episode(env, static_actor(env), seed=[6, 7])
    other = gym.make_vec(CLOCK, num_envs=2, backbone=str(tmp_path), contexts=[0], num_steps=2, sigma_max=5)
    two = run_episode(other, static_actor(other), seed=[6, 7])
    assert sorted(one.context.tolist()) == [1, 3]
    assert not torch.allclose(one.images, two.images)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"guidance_weight": 1.0}, "guidance_weight must be left out for a UNet2DModel"),
        ({"network": "sit"}, "network must be left out for a UNet2DModel"),
        ({"sigma_max": 200}, "noise levels must be those the network knows, 0.01 to 157.4"),
        ({"sigma_min": 0.001}, "noise levels must be those the network knows, 0.01 to 157.4"),
    ],
)
def test_what_such_a_network_cannot_do_is_refused(folder, kwargs, message):
    with pytest.raises(ValueError, match=message):
        gym.make_vec(CLOCK, backbone=folder, **kwargs)


def change(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_damaged_folder_is_refused(tmp_path):
    DDPMPipeline(network(), DDPMScheduler()).save_pretrained(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:200])
    with pytest.raises(ValueError, match=MISSING):
        gym.make_vec(CLOCK, backbone=str(tmp_path))
    weights.rename(weights.with_suffix(".bin"))  # pickles run code
    with pytest.raises(ValueError, match=MISSING):
        gym.make_vec(CLOCK, backbone=str(tmp_path))
    weights.write_bytes(whole)
    change(tmp_path / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    with pytest.raises(ValueError, match=r"must predict the noise \('epsilon'\), got 'v_prediction'"):
        gym.make_vec(CLOCK, backbone=str(tmp_path))
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(ValueError, match=MISSING):
        gym.make_vec(CLOCK, backbone=str(tmp_path))


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    model = network()
    model.conv_in.weight.data[0, 0, 0, 0] = torch.nan
    DDPMPipeline(model, DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{MISSING}.* is damaged: it holds weights that are not finite"):
        gym.make_vec(CLOCK, backbone=str(tmp_path))


def test_a_file_without_some_of_the_weights_is_refused(folder):
    (path,) = Path(folder).glob("**/*.safetensors")
    weights = load_file(path)
    weights.pop("conv_in.bias")
    save_file(weights, path)
    with pytest.raises(ValueError, match=f"{MISSING}.* it lacks the weights 'conv_in.bias'"):
        load_unet(folder)


def test_loading_draws_no_numbers_of_the_users(folder):
    torch.manual_seed(3)
    load_unet(folder)
    found = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(found, torch.rand(2))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b'{"_class_name": "UNet2', "is not readable JSON"), (b"[1]", "must hold a JSON object, got list")],
)
def test_a_configuration_that_cannot_be_read_is_named(folder, content, message):
    (path,) = Path(folder).glob("**/config.json")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} {message}"):
        tier_of(folder)


def test_a_network_of_another_kind_is_no_backbone(tmp_path):
    DDPMPipeline(network(), DDPMScheduler()).save_pretrained(tmp_path)
    change(tmp_path / "unet" / "config.json", _class_name="UNet2DConditionModel")
    with pytest.raises(ValueError, match="is not a folder with a manifest"):
        gym.make_vec(CLOCK, backbone=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sample_size", None),
        ("sample_size", "8"),
        ("sample_size", [8, 8, 8]),
        ("sample_size", [8, 0]),
        ("in_channels", None),
        ("in_channels", 2.5),
        ("num_class_embeds", "x"),
        ("num_class_embeds", True),
        ("num_class_embeds", 10**40),
        ("layers_per_block", "x"),
        ("layers_per_block", [1]),
        ("norm_eps", {"planted": 1}),
        ("act_fn", 3),
        ("down_block_types", "DownBlock2D"),
        ("block_out_channels", [8, "x"]),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused_with_file_and_field(folder, name, value):
    (path,) = Path(folder).glob("**/config.json")
    change(path, **{name: value})
    for load in (load_unet, lambda folder: gym.make_vec(CLOCK, backbone=folder)):
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: {name} must be .*, got ") as refused:
            load(folder)
        assert str(refused.value).endswith(f"got {value!r}")


def test_a_configuration_without_a_word_of_the_images_is_refused(folder):
    (path,) = Path(folder).glob("**/config.json")
    path.write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ValueError, match=r"config\.json: sample_size must be a whole number .*, got None$"):
        tier_of(folder)


@pytest.mark.parametrize(
    ("file", "entries"),
    [
        ("config.json", {"norm_num_groups": 3}),
        ("config.json", {"down_block_types": ["Planted", "Planted"]}),
        ("config.json", {"block_out_channels": []}),
        ("scheduler_config.json", {"num_train_timesteps": -1}),
        ("scheduler_config.json", {"beta_schedule": "planted"}),
    ],
)
def test_what_diffusers_cannot_build_is_told_in_one_line(folder, file, entries):
    (path,) = Path(folder).glob(f"**/{file}")
    change(path, **entries)
    with pytest.raises(ValueError, match=f"^{re.escape(folder)} {MISSING}") as refused:
        load_unet(folder)
    assert "\n" not in str(refused.value)


def test_steps_that_are_no_number_are_refused_with_file_and_field(folder):
    (path,) = Path(folder).glob("**/scheduler_config.json")
    change(path, num_train_timesteps="x")
    with pytest.raises(ValueError, match=r"scheduler_config\.json: num_train_timesteps must be .*, got 'x'"):
        load_unet(folder)
