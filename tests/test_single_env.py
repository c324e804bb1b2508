import gymnasium as gym
import numpy as np
import pytest
import torch

import genenv  # noqa: F401
from genenv.single_env import GenEnv

ENV_ID = "AdaGen/MaskGIT-v0"
EVERYTHING = ["tokens", "features", "step", "context", "prev_action"]


def random_actions(horizon=4):
    return 0.3 * np.random.default_rng(0).standard_normal((horizon, 4)).astype(np.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.8])
def test_one_environment_is_a_batch_of_one(smoothing):
    kwargs = {"reward": "none", "observe": EVERYTHING, "smoothing": smoothing}
    single = gym.make(ENV_ID, **kwargs)
    batch = gym.make_vec(ENV_ID, num_envs=1, autoreset_mode="Disabled", output="numpy", **kwargs)
    for seed in (5, None):
        observation, _ = single.reset(seed=seed)
        batched, _ = batch.reset(seed=seed)
        for action in random_actions():
            for name in EVERYTHING:
                assert np.array_equal(observation[name], batched[name][0])
            observation, reward, terminated, truncated, info = single.step(action)
            batched, rewards, terminations, truncations, infos = batch.step(action[None])
            assert (reward, terminated, truncated) == (rewards[0], terminations[0], truncations[0])
            assert info.keys() == {name for name in infos if not name.startswith("_")}
            for name, value in info.items():
                assert np.array_equal(value, infos[name][0])
        assert terminated
        assert info["image"].shape == (1, 8, 8)


def test_values_have_the_types_of_gymnasium():
    env = gym.make(ENV_ID).unwrapped
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space
    assert info == {}
    observation, reward, terminated, truncated, _ = env.step(np.zeros(4, np.float32))
    assert observation in env.observation_space
    assert [type(x) for x in (reward, terminated, truncated)] == [float, bool, bool]


def test_a_context_can_be_chosen():
    observation, _ = gym.make(ENV_ID).reset(seed=0, options={"context": 7})
    assert observation["context"] == 7


def test_frames_are_pictures_and_the_end_needs_a_reset():
    env = gym.make(ENV_ID, render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (256, 516, 3)
    for action in random_actions():
        env.step(action)
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\)"):
        env.step(np.zeros(4, np.float32))
    env.close()


@pytest.mark.parametrize("shape", [(3,), (1, 4), ()])
def test_an_action_of_the_wrong_shape_is_refused(shape):
    env = gym.make(ENV_ID).unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action must have shape \(4,\), got"):
        env.step(np.zeros(shape, np.float32))


def test_a_view_of_several_environments_is_refused():
    with pytest.raises(ValueError, match="GenEnv is the view of one environment, got num_envs=2"):
        GenEnv(gym.make_vec(ENV_ID, num_envs=2, autoreset_mode="Disabled"))


def test_a_view_of_an_environment_that_resets_itself_is_refused():
    with pytest.raises(ValueError, match="GenEnv needs autoreset_mode='Disabled', got 'SameStep'"):
        GenEnv(gym.make_vec(ENV_ID, num_envs=1))


def test_gymnasiums_own_vectorisation_gives_the_same_tokens():
    kwargs = {"num_envs": 3, "reward": "none"}
    ours = gym.make_vec(ENV_ID, **kwargs)
    theirs = gym.make_vec(ENV_ID, vectorization_mode="sync", **kwargs)
    expected, _ = ours.reset(seed=2)
    found, _ = theirs.reset(seed=2)
    for action in torch.as_tensor(random_actions()[:3])[:, None].expand(3, 3, 4):
        for name in expected:
            assert np.array_equal(found[name], expected[name].numpy())
        expected, found = ours.step(action)[0], theirs.step(action.numpy())[0]
    theirs.close()
