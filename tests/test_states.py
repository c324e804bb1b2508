import dataclasses

import gymnasium as gym
import pytest
import torch

import genenv
from genenv.models.kv_cache import KVCache
from genenv.rng import BatchRng
from genenv.states import choose

STOCHASTIC = ["AdaGen/MaskGIT-v0", "AdaGen/VAR-v0", "AdaGen/LlamaGen-v0", "AdaGen/VQGAN-v0"]
N = 5


def setup(env_id, guidance=True):
    env = gym.make_vec(env_id, num_envs=N, reward="none", observe=["features", "step"]).unwrapped
    rng = BatchRng(torch.arange(N))
    return env, env.contexts.draw(rng), rng


def advanced(env, state, t, streams):
    command = env.actions(0.3 * torch.ones(N, 4), t)
    return [env.sampler.advance(state, command, stream) for stream in streams]


def finish(env, state, t, rng):
    """Returns the images, features included, of playing on from a state."""
    seen = []
    for step in range(t, env.sampler.horizon):
        seen.append(env.sampler.observe(state, ("features",))["features"])
        state = env.sampler.advance(state, env.actions(torch.zeros(N, 4), step), rng)
    return torch.stack(seen), env.sampler.decode(state)


def test_all_stochastic_ids_are_tried():
    made = {env_id: gym.make_vec(env_id, num_envs=1, reward="none") for env_id in genenv.env_ids()}
    assert [env_id for env_id, env in made.items() if env.unwrapped.sampler.stochastic] == STOCHASTIC


@torch.no_grad()
@pytest.mark.parametrize("env_id", STOCHASTIC)
@pytest.mark.parametrize("k", range(3))
def test_one_candidate_for_all_images_is_that_candidate(env_id, k):
    env, context, rng = setup(env_id)
    state = env.sampler.start(context, rng)
    streams = [dataclasses.replace(rng, episode=e) for e in range(3)]
    candidates = advanced(env, advanced(env, state, 0, streams)[1], 1, streams)
    features, images = finish(env, choose(candidates, torch.full((N,), k)), 2, rng)
    expected_features, expected = finish(env, candidates[k], 2, rng)
    assert torch.equal(images, expected)
    torch.testing.assert_close(features, expected_features)


@torch.no_grad()
@pytest.mark.parametrize("env_id", STOCHASTIC)
def test_each_image_goes_on_as_its_own_candidate(env_id):
    env, context, rng = setup(env_id)
    streams = [dataclasses.replace(rng, episode=e) for e in range(3)]
    candidates = advanced(env, env.sampler.start(context, rng), 0, streams)
    index = torch.tensor([2, 0, 1, 1, 0])
    features, images = finish(env, choose(candidates, index), 1, rng)
    alone = [finish(env, candidate, 1, rng) for candidate in candidates]
    for i, k in enumerate(index):
        assert torch.equal(images[i], alone[k][1][i])
        torch.testing.assert_close(features[:, i], alone[k][0][:, i])


def test_a_cache_is_chosen_row_by_row_and_then_its_own():
    caches = [KVCache(2, 2 * N, 3, 4, 5, device="cpu", dtype=torch.float32) for _ in range(2)]
    for i, cache in enumerate(caches):
        cache.keys.fill_(i)
        cache.values.copy_(torch.arange(2 * N)[:, None, None, None] + 100 * i)
        cache.length = 2 + i
    index = torch.tensor([1, 0, 0, 1, 0])
    chosen = KVCache.choose(caches, index)
    assert chosen.keys[0, :, 0, 0, 0].tolist() == [1, 0, 0, 1, 0] * 2
    assert chosen.values[1, :, 2, 3, 4].tolist() == [100, 1, 2, 103, 4, 105, 6, 7, 108, 9]
    assert chosen.length == 3
    chosen.keys.fill_(9)
    assert caches[0].keys.max() == 0


def test_states_of_different_decisions_cannot_be_mixed():
    env, context, rng = setup("AdaGen/MaskGIT-v0")
    with torch.no_grad():
        first = env.sampler.start(context, rng)
        (second,) = advanced(env, first, 0, [rng])
    with pytest.raises(ValueError, match="states must be of one decision"):
        choose([first, second], torch.zeros(N, dtype=torch.int64))
