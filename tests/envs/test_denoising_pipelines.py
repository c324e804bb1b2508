"""Denoising steps of pipelines in folders of diffusers, against the library's own."""

import json
import math

import gymnasium as gym
import pytest
import torch

from genenv.check import check
from genenv.rng import BatchRng, Purpose
from genenv.rollout import generator_policy, run_episode
from genenv.vector_env import unwrapped

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from diffusers import DDIMScheduler, DiTPipeline, StableDiffusionPipeline
from pipeline_folders import label_pipeline, prompt_pipeline

ENV_ID = "AdaScope/Denoising-v0"
PROMPTS = ["a handwritten three", "seven", "a four"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    prompt_pipeline(root / "prompts")
    label_pipeline(root / "labels")
    return {"prompts": str(root / "prompts"), "labels": str(root / "labels")}


def make(folders, name, num_envs=3, **kwargs):
    texts = {"prompts": PROMPTS} if name == "prompts" else {}
    common = {"reward": "none", "autoreset_mode": "Disabled", "num_steps": 4, "contexts": "cycle"}
    return gym.make_vec(ENV_ID, num_envs=num_envs, backbone=folders[name], **common | texts | kwargs)


@pytest.mark.parametrize("name", ["prompts", "labels"])
def test_it_keeps_every_promise(folders, name):
    kwargs = {"prompts": PROMPTS} if name == "prompts" else {}
    observe = ["latents", "time", "mean", "std", "denoised", "features", "step", "context"]
    kwargs |= {"backbone": folders[name], "num_steps": 3, "guidance_weight": 2.0, "observe": observe}
    assert [broken for broken in check(ENV_ID, **kwargs) if broken[1] is not None] == []


@pytest.mark.parametrize("weight", [0.0, 4.0])
@pytest.mark.parametrize("eta", [1.0, 0.3])
def test_the_generator_is_stable_diffusion_with_noise(folders, weight, eta):
    env = make(folders, "prompts", guidance_weight=weight, eta=eta)
    episode = run_episode(env, generator_policy(env), seed=0)
    theirs = StableDiffusionPipeline.from_pretrained(folders["prompts"])
    scheduler = DDIMScheduler.from_config(theirs.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(4)
    rng, shape = BatchRng(torch.arange(3)), unwrapped(env).sampler.shape
    latents = rng.at(0).normal(*shape, purpose=Purpose.START).float()
    with torch.no_grad():
        texts, empty = theirs.encode_prompt(PROMPTS, "cpu", 1, True)
        for step, time in enumerate(scheduler.timesteps):
            torch.testing.assert_close(episode.observations["latents"][step], latents, atol=1e-4, rtol=1e-4)
            noise, none = (theirs.unet(latents, time, states).sample for states in (texts, empty))
            drawn = rng.at(step).normal(*shape, purpose=Purpose.POLICY).float()
            guided = noise + weight * (noise - none)
            latents = scheduler.step(guided, time, latents, eta=eta, variance_noise=drawn).prev_sample
        images = theirs.vae.decode(latents / theirs.vae.config.scaling_factor).sample
    torch.testing.assert_close(episode.images, (images / 2 + 0.5).clamp(0, 1), atol=1e-3, rtol=0)
    assert episode.context.tolist() == [0, 1, 2]
    assert unwrapped(env).contexts.names == PROMPTS


def test_the_generator_is_a_dit_with_noise(folders):
    env = make(folders, "labels")
    episode = run_episode(env, generator_policy(env), seed=5)
    theirs = DiTPipeline.from_pretrained(folders["labels"])
    sampler = unwrapped(env).sampler
    times = sampler.times[:-1]
    for step, time in enumerate(times):
        latents = episode.observations["latents"][step]
        with torch.no_grad():
            noise = theirs.transformer(latents, time.expand(3), episode.context).sample[:, :4]
            found = sampler.predicted(latents, torch.full((3,), step), episode.context)
        alpha = theirs.scheduler.alphas_cumprod[int(time)].sqrt()
        data = (latents - (1 - alpha**2).sqrt() * noise) / alpha
        torch.testing.assert_close(found.denoised, data, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps_offset", [0, 1])
def test_every_decision_has_a_density(folders, tmp_path, steps_offset):
    prompt_pipeline(tmp_path / "pipeline")
    path = tmp_path / "pipeline" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"steps_offset": steps_offset}))
    env = make({"prompts": str(tmp_path / "pipeline")}, "prompts", num_steps=5)
    sampler = unwrapped(env).sampler
    assert len(sampler.times) == 6
    assert (sampler.times.diff() < 0).all()
    assert sampler.times[-1] == 0
    sampler.predicted(torch.zeros(5, *sampler.shape), torch.arange(5), torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("prompts", {"prompts": None}, "prompts must be a list of texts, got None"),
        ("labels", {"prompts": ["three"]}, "prompts must be left out for a network of labels"),
        ("prompts", {"network": "dit"}, "network must be 'unet', the only one of"),
        ("prompts", {"transition": "flow-sde"}, "'flow-sde' is that of the straight path, got VPTable"),
        ("prompts", {"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ("prompts", {"eta": math.inf}, "eta must be above 0"),
    ],
)
def test_what_is_not_legal_is_refused(folders, name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(folders, name, **kwargs)


def test_prompts_are_for_pipelines(folders):
    with pytest.raises(ValueError, match="prompts must be None for 'digits', which shows labels"):
        gym.make_vec(ENV_ID, prompts=PROMPTS)
