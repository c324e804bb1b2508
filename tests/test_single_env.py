import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from test_rollout import Choices

import genenv  # noqa: F401
from genenv.contexts import Contexts
from genenv.single_env import GenEnv
from genenv.vector_env import GenVectorEnv

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


@pytest.mark.parametrize("seed", [np.int64(3), np.array(3), np.uint8(3), torch.tensor(3)])
def test_a_whole_number_of_any_library_is_a_seed(seed):
    env = gym.make(ENV_ID, reward="none", observe=EVERYTHING)
    found, _ = env.reset(seed=seed)
    drawn = env.unwrapped.np_random.integers(1000)
    expected, _ = env.reset(seed=3)
    assert all(np.array_equal(found[name], expected[name]) for name in EVERYTHING)
    assert env.unwrapped.np_random.integers(1000) == drawn


@pytest.mark.parametrize("context", [np.int64(7), np.array(7), np.array([7]), [7], torch.tensor(7)])
def test_a_context_is_a_whole_number_of_any_library(context):
    observation, _ = gym.make(ENV_ID, reward="none").reset(seed=0, options={"context": context})
    assert observation["context"] == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 1.5}, r"seed must be a whole number, got 1\.5"),
        ({"seed": "3"}, "seed must be a whole number, got '3'"),
        ({"seed": -1}, r"seeds must lie in 0\.\..*, got -1"),
        ({"seed": 2**63}, r"seeds must lie in 0\.\..*, got 9223372036854775808"),
        ({"seed": 7, "options": {"context": 99}}, r"context must be .* 0\.\.9, got 99"),
        ({"seed": 7, "options": {"kontext": 1}}, "reset options must be among 'context'.* got .*kontext"),
        ({"options": 3}, "reset options must be a dictionary, got 3"),
        ({"seed": 7, "options": ["context"]}, r"reset options must be a dictionary, got \['context'\]"),
        ({"options": {"context": 2.5}}, r"context must be .*, got 2\.5"),
    ],
)
def test_a_refused_reset_leaves_the_episode_going_on(arguments, message):
    env, same = (gym.make(ENV_ID, reward="none").unwrapped for _ in range(2))
    for each in (env, same):
        each.reset(seed=5)
        each.step(random_actions()[0])
    with pytest.raises(ValueError, match=message):
        env.reset(**arguments)
    for action in random_actions()[1:]:
        found, expected = env.step(action), same.step(action)
        assert all(np.array_equal(found[0][name], expected[0][name]) for name in expected[0])
    assert np.array_equal(found[-1]["image"], expected[-1]["image"])
    assert env.np_random.integers(1000) == same.np_random.integers(1000)
    found, expected = env.reset()[0], same.reset()[0]
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", [int, np.int64, np.array, torch.tensor])
def test_an_action_may_be_a_token(kind):
    env = GenEnv(GenVectorEnv(Choices(), Contexts(["a", "b"]), 1, autoreset_mode="Disabled"))
    check_env(env, skip_render_check=True)
    env.reset(seed=0)
    totals = [env.step(kind(token))[0]["total"] for token in (3, 0, 4)]
    assert totals == [3, 3, 7]
    env.reset(seed=0)
    with pytest.raises(ValueError, match="actions must be whole numbers"):
        env.step(1.7)
    with pytest.raises(
        ValueError, match=r"^actions must be an array of numbers, as of float32 or int64, got array\('left', "
    ):
        env.step("left")
