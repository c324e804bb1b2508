import copy
import pickle

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from episodes import SHORT, TOKENS

import genenv

COPIES = {
    "pickle": lambda env: pickle.loads(pickle.dumps(env)),
    "cloudpickle": lambda env: pickle.loads(cloudpickle.dumps(env)),
    "deepcopy": copy.deepcopy,
}


def assert_same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_same(found[name], value)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert np.array_equal(found, expected)


def assert_same_episodes(ours, theirs, actions, seed=None):
    """Plays actions in both environments, and an episode more where they reset themselves."""
    for (found, _), (expected, _) in [(ours.reset(seed=seed), theirs.reset(seed=seed))] * (seed is not None):
        assert_same(found, expected)
    for action in actions:
        for found, expected in zip(ours.step(action), theirs.step(action), strict=True):
            assert_same(found, expected)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("env_id", genenv.env_ids())
def test_a_copy_of_a_batch_goes_on_with_the_same_episodes(env_id, how):
    smoothing = 0.0 if env_id in TOKENS else 0.5
    env = gym.make_vec(env_id, num_envs=3, reward="default", smoothing=smoothing, **SHORT[env_id])
    env.action_space.seed(7)
    actions = [torch.as_tensor(env.action_space.sample()) for _ in range(env.unwrapped.sampler.horizon)]
    env.reset(seed=5)
    env.step(actions[0])
    kept = COPIES[how](env)
    assert_same_episodes(
        COPIES[how](env), env, [*actions[1:], *actions]
    )  # in the middle, and the next episode
    assert_same_episodes(
        kept, env, actions, seed=9
    )  # nothing is shared: the other copy's steps left it alone


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("env_id", genenv.env_ids())
def test_a_copy_of_a_single_environment_goes_on_with_the_same_episode(env_id, how):
    env = gym.make(env_id, reward="none", **SHORT[env_id])
    env.action_space.seed(8)
    actions = [env.action_space.sample() for _ in range(env.unwrapped.sampler.horizon)]
    env.reset(seed=2)
    env.step(actions[0])
    assert_same_episodes(COPIES[how](env), env, actions[1:])
    fresh = COPIES[how](gym.make(env_id, reward="none", **SHORT[env_id]))
    assert_same_episodes(fresh, env, actions, seed=4)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("reward", ["clip", "hpsv2", "fid", {"loo_fid": 2.0, "adversarial": 1.0}])
def test_every_reward_is_copied_with_its_environment(reward, how):
    if reward in ("clip", "hpsv2"):
        pytest.importorskip("open_clip")
        pytest.importorskip("transformers")
    env = gym.make_vec("AdaGen/MaskGIT-v0", num_envs=3, reward=reward)
    actions = [torch.zeros(3, 4)] * 4
    assert_same_episodes(COPIES[how](env), env, actions, seed=1)
