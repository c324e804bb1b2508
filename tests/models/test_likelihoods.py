"""What a generator says of given tokens and latents, against its own sampler."""

import itertools

import gymnasium as gym
import pytest
import torch

from genenv.rng import BatchRng
from genenv.solvers import flow_acceleration, reverse_flow

N = 4


def sampled(env_id):
    """Returns the sampler, contexts and all states of an unguided episode."""
    env = gym.make_vec(env_id, num_envs=N, reward="none", observe=["features"]).unwrapped
    rng = BatchRng(torch.arange(N))
    context = env.contexts.draw(rng)
    states = [env.sampler.start(context, rng)]
    commands = [env.actions(torch.zeros(N, env.action_space.shape[1]), t) for t in range(env.sampler.horizon)]
    with torch.no_grad():
        for command in commands:
            states.append(env.sampler.advance(states[-1], command, rng))
    return env, context, states


@pytest.mark.parametrize(
    ("env_id", "part"), [("AdaGen/LlamaGen-v0", "llamagen"), ("AdaGen/VQGAN-v0", "vqgan")]
)
def test_raster_log_probabilities_are_those_of_the_tokens_read_one_by_one(env_id, part):
    _, context, states = sampled(env_id)
    from genenv.tiers import load_part

    model = load_part(part, "digits")
    tokens = states[-1].tokens
    found = model.log_prob(tokens, context)
    cache, expected = model.new_cache(N), []
    for place in range(tokens.shape[1]):
        entries = tokens[:, max(place - 1, 0) : place]
        logits, _ = model.read(entries, context if place == 0 else None, place, cache, slice(None))
        expected.append(logits.log_softmax(-1).gather(1, tokens[:, place, None])[:, 0])
    torch.testing.assert_close(found, torch.stack(expected, dim=1), atol=1e-5, rtol=1e-5)


def test_scale_log_probabilities_are_those_of_the_scales_read_one_by_one():
    env, context, states = sampled("AdaGen/VAR-v0")
    transformer, quantiser = env.sampler.transformer, env.sampler.quantiser
    tokens = torch.cat([state.tokens for state in states[1:]], dim=1)
    found = transformer.log_prob(tokens, quantiser.maps(list(quantiser.accumulate(tokens))), context)
    expected = [
        before.prediction.conditional.log_softmax(-1).gather(-1, after.tokens[..., None])[..., 0]
        for before, after in itertools.pairwise(states)
    ]
    torch.testing.assert_close(found, torch.cat(expected, dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("env_id", ["AdaGen/DiT-v0", "AdaGen/SiT-v0"])
@pytest.mark.parametrize("weight", [None, 0.0, 1.7])
def test_the_denoised_data_are_what_a_solver_steps_towards(env_id, weight):
    env, context, states = sampled(env_id)
    state, sampler = states[2], env.sampler
    weights = None if weight is None else torch.full((N,), weight)
    with torch.no_grad():
        found = sampler.denoise(state.latents, state.time, context, weights)
    output = sampler.guided(state.prediction, torch.full((N,), weight or 0.0))
    expected = sampler.path.data(state.latents, state.time, output)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("env_id", ["AdaGen/DiT-v0", "AdaGen/SiT-v0"])
@pytest.mark.parametrize("weight", [None, 1.7])
def test_the_denoiser_of_a_noise_level_is_that_of_its_time(env_id, weight):
    env, context, states = sampled(env_id)
    state, path = states[2], env.sampler.path
    weights = None if weight is None else torch.full((N,), weight)
    scaled = state.latents / path.alpha(state.time).float()[:, None, None, None]
    found = env.sampler.denoiser(context, weights)(scaled, path.noise_level(state.time))
    expected = env.sampler.denoise(state.latents, state.time, context, weights)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("env_id", "level", "difference"),
    [("AdaGen/SiT-v0", 3.0, 0.01), ("AdaGen/SiT-v0", 0.1, 0.01), ("AdaGen/DiT-v0", 0.1, 0.003)],
)
def test_forward_mode_and_central_differences_agree_on_the_acceleration(env_id, level, difference):
    sampler = gym.make_vec(env_id, num_envs=1, reward="none").unwrapped.sampler
    generator, sigma = torch.Generator().manual_seed(0), torch.full((N,), level, dtype=torch.float64)
    x = (level**2 + 0.5) ** 0.5 * torch.randn(N, *sampler.fields["latents"].shape, generator=generator)
    denoiser = sampler.denoiser(torch.arange(N), torch.full((N,), 0.5))
    with torch.no_grad():
        flow = reverse_flow(denoiser, x, sigma)
        exact, near = (flow_acceleration(denoiser, x, sigma, flow, d) for d in (None, difference))
    assert (near - exact).norm() < 1e-3 * exact.norm()


@pytest.mark.parametrize("env_id", ["AdaGen/DiT-v0", "AdaGen/SiT-v0"])
def test_denoising_a_real_digit_a_little_gives_it_back(env_id):
    from genenv.data import digits

    sampler = gym.make_vec(env_id, num_envs=1, reward="none").unwrapped.sampler
    images, labels = digits()
    data = 2 * images[:64] - 1
    time = torch.full((64,), 0.1 if env_id == "AdaGen/DiT-v0" else 0.9, dtype=torch.float64)
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(0))
    scale = [c.float()[:, None, None, None] for c in (sampler.path.alpha(time), sampler.path.sigma(time))]
    noisy = scale[0] * data + scale[1] * noise
    denoised = sampler.denoise(noisy, time, labels[:64])
    assert (denoised - data).square().mean() < 0.5 * (noisy / scale[0] - data).square().mean()


def test_gradients_reach_the_weights_of_a_trainable_network():
    env, context, states = sampled("AdaGen/SiT-v0")
    network = env.sampler.network.requires_grad_(True)
    env.sampler.denoise(states[2].latents, states[2].time, context).square().mean().backward()
    assert any(p.grad is not None and p.grad.any() for p in network.parameters())
