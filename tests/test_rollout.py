import dataclasses

import gymnasium as gym
import pytest
import torch

from genenv.rollout import Episode, generate, run_episode, static_actor, unwrapped


def make(num_envs=3, **kwargs):
    return gym.make_vec("AdaGen/MaskGIT-v0", num_envs=num_envs, **({"reward": "none"} | kwargs))


def by_context(observation):
    """An actor whose action depends on the label alone."""
    return (observation["context"][:, None] / 10 - 0.5) * torch.tensor([0.5, -0.5, 0.3, 1.0])


@pytest.mark.parametrize("reward", ["none", "loo_fid"])
def test_an_episode_is_the_same_in_every_autoreset_mode(reward):
    modes = ("Disabled", "SameStep", "NextStep")
    one, *others = (run_episode(make(autoreset_mode=m, reward=reward), by_context, seed=4) for m in modes)
    for other in others:
        for field in dataclasses.fields(Episode):
            torch.testing.assert_close(getattr(other, field.name), getattr(one, field.name), rtol=0, atol=0)


def test_an_episode_holds_what_the_policy_saw_and_did():
    env = make(num_steps=5)
    episode = run_episode(env, by_context, seed=4)
    assert episode.observations["tokens"].shape == (5, 3, 4, 4)
    assert episode.observations["step"].tolist() == [[t] * 3 for t in range(5)]
    assert torch.equal(episode.actions[2], by_context({"context": episode.context}))
    assert set(episode.schedule) == {param.name for param in unwrapped(env).sampler.params}
    assert episode.schedule["mask_ratio"].shape == (5, 3)
    assert episode.images.shape == (3, 1, 8, 8)
    assert episode.rewards.tolist() == [0.0] * 3
    assert set(episode.diagnostics) == {"nfe", "num_masked", "confidence"}


def test_rewards_and_their_components_are_kept():
    episode = run_episode(make(reward={"loo_fid": 2.0}), by_context, seed=4)
    assert episode.rewards.any()
    torch.testing.assert_close(episode.rewards, 2 * episode.diagnostics["reward/loo_fid"])


def test_observations_can_be_left_out():
    assert run_episode(make(), by_context, seed=4, keep_observations=False).observations == {}


def test_an_episode_without_a_seed_is_the_next_one():
    env = make()
    first = run_episode(env, by_context, seed=4)
    assert not torch.equal(run_episode(env, by_context).images, first.images)
    assert torch.equal(run_episode(env, by_context, seed=4).images, first.images)


@pytest.mark.parametrize("num_envs", [1, 4, 16])
def test_generated_images_do_not_depend_on_the_batch_size(num_envs):
    expected = generate(make(7), by_context, 7, seed=30)
    found = generate(make(num_envs), by_context, 7, seed=30)
    assert len(found.images) == len(found.context) == len(found.rewards) == len(found.diagnostics["nfe"]) == 7
    assert found.actions.shape == (4, 7, 4)
    assert found.schedule["mask_ratio"].shape == (4, 7)
    assert torch.equal(found.context, expected.context)
    torch.testing.assert_close(found.images, expected.images)


@pytest.mark.parametrize("num_images", [0, -3])
def test_no_images_cannot_be_generated(num_images):
    with pytest.raises(ValueError, match=f"num_images must be at least 1, got {num_images}"):
        generate(make(), by_context, num_images)


def test_the_static_actor_plays_zeros():
    env = make(2, smoothing=0.5)
    assert torch.equal(static_actor(env)({}), torch.zeros(2, 4))


def test_the_environment_inside_wrappers_is_found():
    env = make(reward="loo_fid", smoothing=0.5)
    assert unwrapped(env) is env.env.env


def test_the_first_images_of_an_episode_are_an_episode():
    whole = run_episode(make(), by_context, seed=0)
    part, few = whole.first(2), run_episode(make(2), by_context, seed=0)
    assert torch.equal(part.images, whole.images[:2])
    for field in dataclasses.fields(Episode):
        torch.testing.assert_close(getattr(part, field.name), getattr(few, field.name))
