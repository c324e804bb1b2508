import gymnasium as gym
import pytest
import torch

import genenv
from genenv.closed_loop import closed_loop, hand_crafted_params
from genenv.envs.ode import ODESampler
from genenv.envs.var import VARSampler
from genenv.rng import BatchRng
from genenv.rollout import run_episode, static_actor
from genenv.tiers.digits import DIGITS
from genenv.vector_env import unwrapped

N = 3
ENV_IDS = [env_id for env_id in genenv.env_ids() if env_id.startswith("AdaGen/")]
SETTINGS = [
    *((env_id, {}) for env_id in ENV_IDS),
    ("AdaGen/MaskGIT-v0", {"num_steps": 1}),
    ("AdaGen/LlamaGen-v0", {"tokens_per_decision": 1}),
    *(("AdaGen/DiT-v0", {"solver": solver, "num_steps": 4}) for solver in ("euler", "heun", "dpmpp2m")),
    ("AdaGen/SiT-v0", {"solver": "heun", "num_steps": 4, "grid": "cosine"}),
]
AT_AN_END = [
    *((f"AdaGen/{name}-v0", {"token_temperature": 0}) for name in ("MaskGIT", "VAR", "LlamaGen", "VQGAN")),
    ("AdaGen/MaskGIT-v0", {"mask_temperature": 0, "guidance_weight": 0}),
    ("AdaGen/VAR-v0", {"top_k": 0}),
    ("AdaGen/VAR-v0", {"top_k": 0, "top_k_rule": "released"}),
    ("AdaGen/LlamaGen-v0", {"top_k": 0.5, "top_p": 1}),
    ("AdaGen/VQGAN-v0", {"top_k": 0, "guidance_weight": 0}),
    ("AdaGen/DiT-v0", {"guidance_weight": 0}),
]


def random_network(part, backbone):
    torch.manual_seed(len(part))
    network = DIGITS.parts[part]()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    return network.eval().requires_grad_(False)


@pytest.fixture
def make(monkeypatch):
    """Returns what makes N environments of random networks of the digits' size."""
    for module in ("maskgit", "var", "raster_ar", "ode"):
        monkeypatch.setattr(f"genenv.envs.{module}.load_part", random_network)
    usual = {"num_envs": N, "reward": "none", "schedule": "published"}
    return lambda env_id, **kwargs: gym.make_vec(env_id, **usual | kwargs)


def loop_images(env, seed, separate=False):
    inner = unwrapped(env)
    rng = BatchRng(torch.arange(seed, seed + N))
    return closed_loop(inner.sampler, inner.contexts.draw(rng), rng, separate)


def undecoded(env):
    """Returns the environment's sampler, after making it give tokens or latents in place of images."""
    sampler = unwrapped(env).sampler
    sampler.detokenise = sampler.decoder = lambda tokens_or_latents: tokens_or_latents
    if isinstance(sampler, VARSampler):
        sampler.tokenizer.decode = sampler.decoder
    if isinstance(sampler, ODESampler):
        sampler.network = row_by_row(sampler.network)
    return sampler


def row_by_row(network):
    """Returns the network with a rounding that does not depend on the batch; a random DiT would magnify it."""

    def run(*inputs):
        rows = [network(*(entry[i : i + 1] for entry in inputs)) for i in range(len(inputs[0]))]
        return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))

    return run


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(("env_id", "kwargs"), SETTINGS)
def test_the_tokens_or_latents_are_those_of_the_hand_crafted_episode(make, env_id, kwargs, separate):
    env = make(env_id, **kwargs)
    undecoded(env)
    ours, another = (loop_images(env, seed, separate) for seed in (5, 6))
    torch.testing.assert_close(ours, run_episode(env, static_actor(env), seed=5).images, rtol=1e-5, atol=1e-5)
    assert (ours - another).abs().mean() > 1e-2


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(("env_id", "kwargs"), AT_AN_END)
def test_so_they_are_with_settings_at_the_ends_of_their_ranges(make, env_id, kwargs, separate):
    env = make(env_id, **kwargs)
    undecoded(env)
    expected = run_episode(env, static_actor(env), seed=5).images
    torch.testing.assert_close(loop_images(env, 5, separate), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_the_images_are_those_of_the_hand_crafted_episode(make, env_id):
    env = make(env_id)
    images = loop_images(env, seed=5)
    assert images.shape == (N, 1, 8, 8)
    expected = run_episode(env, static_actor(env), seed=5).images
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-3)  # the magnified rounding of a random DiT


def test_channels_without_guidance_are_left_to_the_class(make):
    env = make("AdaGen/SiT-v0")
    sampler = undecoded(env)
    guided = loop_images(env, seed=5)
    sampler.guided_channels = 0
    images = loop_images(env, seed=5)
    torch.testing.assert_close(
        images, run_episode(env, static_actor(env), seed=5).images, rtol=1e-5, atol=1e-5
    )
    assert (images - guided).abs().max() > 1e-2


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(
    ("env_id", "layer", "steps", "released"),
    [
        ("AdaGen/MaskGIT-v0", "mlm_layer", 4, [N] * (2 * 4 + 1)),
        ("AdaGen/VAR-v0", "head", 4, [2 * N] * 4),
        ("AdaGen/LlamaGen-v0", "output", 16, [2 * N] * 16),
        ("AdaGen/DiT-v0", "final_layer", 8, [N] * (2 * 8)),
        ("AdaGen/SiT-v0", "final_layer", 8, [N] * (2 * 8)),
    ],
)
def test_a_loop_makes_the_network_calls_it_says(make, env_id, layer, steps, released, separate):
    env, calls = make(env_id), []
    sampler = unwrapped(env).sampler
    holder = getattr(sampler, {"head": "transformer", "output": "new_cache"}.get(layer, "network"))
    network = getattr(holder, "__self__", holder)  # of a bound method
    getattr(network, layer).register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    loop_images(env, seed=0, separate=separate)
    assert calls == ([N] * (2 * steps + 2) if separate else released)


def test_the_schedule_is_the_hand_crafted_one_for_every_image(make):
    sampler = unwrapped(make("AdaGen/DiT-v0")).sampler
    decisions = hand_crafted_params(sampler.params, torch.zeros(N, dtype=torch.int64))
    assert len(decisions) == sampler.horizon
    for param in sampler.params:
        for t, params in enumerate(decisions):
            assert params[param.name].tolist() == [param.static[t].item()] * N
