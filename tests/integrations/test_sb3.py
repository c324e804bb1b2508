import importlib
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecFrameStack, VecMonitor, VecNormalize
from test_rollout import Choices

from genenv.contexts import Contexts
from genenv.integrations.sb3 import GenVecEnv
from genenv.vector_env import GenVectorEnv
from genenv.wrappers.vector import EMAActionSmoothing, FlattenObservation, TerminalReward

ENV_ID, NUM_ENVS, HORIZON = "AdaGen/MaskGIT-v0", 6, 4
REWARD = f"{__name__}:make_brightness"


def brightness(images, context):
    return images.mean((1, 2, 3))


def make_brightness(backbone, device):
    return brightness


def make(**kwargs):
    kwargs = {"num_envs": NUM_ENVS, "reward": REWARD} | kwargs
    return gym.make_vec(ENV_ID, **kwargs)


def actions(t, num_envs=NUM_ENVS):
    return np.random.default_rng(t).uniform(-1, 1, (num_envs, 4)).astype(np.float32)


def assert_same(ours, native):
    assert set(ours) == set(native)
    for name, value in ours.items():
        assert isinstance(value, np.ndarray | np.generic)
        assert np.array_equal(value, native[name].numpy())


@pytest.mark.parametrize("observe", [None, ["features", "prev_action", "step"]])
def test_two_episodes_are_those_of_the_native_environment(observe):
    adapter, native = GenVecEnv(make(observe=observe)), make(observe=observe)
    adapter.seed(11)
    ours, (theirs, _) = adapter.reset(), native.reset(seed=11)
    assert_same(ours, theirs)
    for t in range(2 * HORIZON):
        ours, rewards, dones, infos = adapter.step(actions(t))
        theirs, reward, terminated, _, info = native.step(torch.from_numpy(actions(t)))
        assert_same(ours, theirs)
        assert all(value.dtype == adapter.observation_space[name].dtype for name, value in ours.items())
        assert np.array_equal(rewards, reward.numpy())
        assert np.array_equal(dones, terminated.numpy())
        assert dones.dtype == bool
        assert dones.all() == ((t + 1) % HORIZON == 0)
        if not dones.all():
            assert infos == [{}] * NUM_ENVS
            continue
        for i, entry in enumerate(infos):
            assert_same(entry["terminal_observation"], {k: v[i] for k, v in info["final_obs"].items()})
            assert entry["TimeLimit.truncated"] is False
            assert entry[f"reward/{REWARD}"] == rewards[i] > 0
            assert entry["episode"]["r"] == rewards[i]
            assert entry["episode"]["l"] == HORIZON
            assert entry["episode"]["t"] >= 0


def test_what_a_step_returns_belongs_to_the_caller():
    adapter = GenVecEnv(make())
    adapter.seed(0)
    adapter.reset()
    given = actions(0)
    observation, rewards, dones, infos = adapter.step(given)
    given[:] = np.nan
    kept = {name: value.copy() for name, value in observation.items()}
    for array in (rewards, *observation.values()):
        assert array.flags.writeable
    rewards += 1
    dones[:] = True
    infos[0]["mine"] = True
    _, later, done, fresh = adapter.step(actions(1))
    assert not later.any()
    assert not done.any()
    assert fresh == [{}] * NUM_ENVS
    assert all(np.array_equal(observation[name], kept[name]) for name in kept)


def test_a_step_copies_to_the_host_once(monkeypatch):
    adapter = GenVecEnv(make(smoothing=0.5))
    adapter.reset()
    copies, original = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: copies.append(self.shape) or original(self))
    for t in range(HORIZON):
        adapter.step(actions(t))
    assert len(copies) == HORIZON


def test_seeds_are_used_by_one_reset():
    adapter = GenVecEnv(make(observe=["context"], contexts="cycle"))
    assert adapter.seed(3) == [3, 4, 5, 6, 7, 8]
    assert adapter.reset()["context"].tolist() == [3, 4, 5, 6, 7, 8]
    assert adapter.reset()["context"].tolist() == [4, 5, 6, 7, 8, 9]  # the next episode of the same seeds
    adapter.seed(None)
    assert all(isinstance(seed, int) for seed in adapter._seeds)
    adapter.reset()
    assert adapter._seeds == [None] * NUM_ENVS


def test_options_are_used_by_one_reset():
    adapter = GenVecEnv(make(observe=["context"], contexts="cycle"))
    adapter.set_options([{"context": label} for label in (9, 8, 7, 6, 5, 4)])
    assert adapter.reset()["context"].tolist() == [9, 8, 7, 6, 5, 4]
    adapter.set_options({"context": 2})
    assert adapter.reset()["context"].tolist() == [2] * NUM_ENVS
    adapter.seed(0)
    assert adapter.reset()["context"].tolist() == [0, 1, 2, 3, 4, 5]
    adapter.set_options([{"context": 1}] + [{}] * (NUM_ENVS - 1))
    with pytest.raises(ValueError, match="every environment the same keys"):
        adapter.reset()


def test_attributes_are_found_through_the_wrappers():
    adapter = GenVecEnv(make(smoothing=0.5))
    assert adapter.get_attr("decay") == [0.5] * NUM_ENVS
    assert adapter.get_attr("current_step", indices=[0, 2]) == [HORIZON, HORIZON]
    assert adapter.get_attr("num_envs", indices=1) == [NUM_ENVS]
    adapter.set_attr("decay", 0.25)
    adapter.set_attr("note", "new")
    assert adapter.env.decay == 0.25
    assert adapter.get_attr("note", 0) == ["new"]
    assert not adapter.has_attr("missing")
    with pytest.raises(AttributeError, match="has no attribute 'missing'"):
        adapter.get_attr("missing")
    with pytest.raises(ValueError, match="indices must name all 6 environments"):
        adapter.set_attr("decay", 0.1, indices=[0])
    assert len(adapter.env_method("reset", seed=4, indices=[1, 3])) == 2
    assert adapter.env_is_wrapped(EMAActionSmoothing) == [True] * NUM_ENVS
    assert adapter.env_is_wrapped(TerminalReward, indices=0) == [True]
    assert adapter.env_is_wrapped(Monitor, indices=[1, 2]) == [True, True]  # the infos are a Monitor's
    assert adapter.env_is_wrapped(gym.wrappers.TimeLimit) == [False] * NUM_ENVS


def test_frames_are_tiled_for_videos():
    adapter = GenVecEnv(make(render_mode="rgb_array"))
    adapter.reset()
    frames = adapter.get_images()
    assert adapter.render_mode == "rgb_array"
    assert len(frames) == NUM_ENVS
    height, width, channels = frames[0].shape
    assert adapter.render().shape == (3 * height, 2 * width, channels)
    assert adapter.render().dtype == np.uint8


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"autoreset_mode": "Disabled"}, "autoreset_mode must be 'SameStep' for SB3, got 'Disabled'"),
        ({"output": "numpy"}, "output must be 'torch' for SB3's adapter, got 'numpy'"),
    ],
)
def test_an_environment_of_another_kind_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GenVecEnv(make(**kwargs))


def test_a_foreign_environment_is_refused():
    with pytest.raises(ValueError, match="must hold a GenVectorEnv"):
        GenVecEnv(gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync"))


def test_integers_that_float32_cannot_hold_are_refused():
    native = make()
    native.single_observation_space["tokens"] = gym.spaces.Box(0, 2**24 + 1, (4, 4), np.int64)
    with pytest.raises(ValueError, match="'tokens' must be at most 16777216"):
        GenVecEnv(native)


def test_ppo_trains_and_reports_the_episodes():
    env = GenVecEnv(make())
    model = PPO(
        "MultiInputPolicy", env, n_steps=2 * HORIZON, batch_size=NUM_ENVS * HORIZON, n_epochs=1, seed=0
    )
    model.learn(2 * 2 * HORIZON * NUM_ENVS)
    assert len(model.ep_info_buffer) == 4 * NUM_ENVS
    assert all(episode["l"] == HORIZON and 0 < episode["r"] < 1 for episode in model.ep_info_buffer)
    assert not model.rollout_buffer.rewards[: HORIZON - 1].any()
    assert model.rollout_buffer.rewards[HORIZON - 1].all()


def test_a_policy_is_evaluated_by_sb3s_own_function():
    env = GenVecEnv(make())
    model = PPO("MultiInputPolicy", env, n_steps=HORIZON, batch_size=NUM_ENVS * HORIZON)
    rewards, lengths = evaluate_policy(model, env, n_eval_episodes=2 * NUM_ENVS, return_episode_rewards=True)
    assert lengths == [HORIZON] * 2 * NUM_ENVS
    assert all(reward > 0 for reward in rewards)


def test_an_evaluation_reports_the_return_under_normalised_rewards():
    model = PPO("MultiInputPolicy", GenVecEnv(make()), n_steps=HORIZON, batch_size=NUM_ENVS * HORIZON, seed=0)
    means = []
    for wrap in (lambda env: env, lambda env: VecNormalize(env, norm_obs=False, norm_reward=True)):
        env = wrap(GenVecEnv(make()))
        env.seed(5)
        means.append(evaluate_policy(model, env, n_eval_episodes=NUM_ENVS)[0])
    assert means[0] == means[1]


def test_a_second_monitor_is_superfluous():
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        VecMonitor(GenVecEnv(make()))


def test_a_flat_view_holds_the_same_observations():
    flat, plain = (
        GenVecEnv(make(observe=["context", "prev_action"]), flatten=True),
        make(observe=["context", "prev_action"]),
    )
    assert flat.observation_space.shape == (10 + 4,)
    flat.seed(3)

    def assert_flat(found, observation):
        assert found.dtype == np.float32
        assert np.array_equal(found[..., :10], np.eye(10)[observation["context"]])
        assert np.array_equal(found[..., 10:], observation["prev_action"])

    assert_flat(flat.reset(), plain.reset(seed=3)[0])
    for t in range(2 * HORIZON):
        found, rewards, dones, infos = flat.step(actions(t))
        expected, reward, _, _, info = plain.step(torch.from_numpy(actions(t)))
        assert_flat(found, expected)
        assert np.array_equal(rewards, reward.numpy())
        if dones.all():
            last = np.stack([entry["terminal_observation"] for entry in infos])
            assert_flat(last, info["final_obs"])


def test_algorithms_and_wrappers_without_dictionaries_take_the_flat_view():
    sb3_contrib = pytest.importorskip("sb3_contrib")
    steps = 4 * HORIZON * NUM_ENVS
    env = GenVecEnv(make(), flatten=True)
    crossq = sb3_contrib.CrossQ("MlpPolicy", env, learning_starts=HORIZON * NUM_ENVS, batch_size=8, seed=0)
    crossq.learn(steps)
    assert crossq.num_timesteps == steps
    ars = sb3_contrib.ARS("LinearPolicy", GenVecEnv(make(), flatten=True), n_delta=2, n_top=1, seed=0)
    ars.learn(steps)
    assert ars.num_timesteps >= steps
    stacked = VecFrameStack(GenVecEnv(make(), flatten=True), n_stack=3)
    assert stacked.reset().shape == (NUM_ENVS, 3 * env.observation_space.shape[0])
    PPO("MlpPolicy", stacked, n_steps=HORIZON, batch_size=HORIZON * NUM_ENVS, n_epochs=1).learn(1)


def test_a_flat_environment_needs_no_keyword_argument():
    adapter = GenVecEnv(FlattenObservation(make()))
    assert adapter.reset().shape == (NUM_ENVS, *adapter.observation_space.shape)


@pytest.mark.parametrize("made", [True, False], ids=["environment", "id"])
def test_ppo_trains_on_the_plain_environment(made):
    env = gym.make(ENV_ID) if made else ENV_ID
    model = PPO("MultiInputPolicy", env, n_steps=4 * HORIZON, batch_size=4 * HORIZON, n_epochs=1, seed=0)
    model.learn(8 * HORIZON)
    assert [episode["l"] for episode in model.ep_info_buffer] == [HORIZON] * 8


def test_without_sb3_the_remedy_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "genenv.integrations.sb3")
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.vec_env", None)
    with pytest.raises(ImportError, match=r"pip install 'genenv\[sb3\]'"):
        importlib.import_module("genenv.integrations.sb3")


def test_ppo_learns_which_token_to_choose():
    env = GenVecEnv(
        TerminalReward(
            GenVectorEnv(Choices(), Contexts(["a", "b"]), 8),
            lambda images, context: 3 * brightness(images, context),
        )
    )
    assert env.action_space == gym.spaces.Discrete(5)
    env.seed(0)
    model = PPO("MultiInputPolicy", env, n_steps=3, batch_size=24, learning_rate=0.01, seed=0)
    first = evaluate_policy(model, env, n_eval_episodes=16)[0]
    model.learn(24 * 20)
    assert evaluate_policy(model, env, n_eval_episodes=16)[0] > first


@pytest.mark.parametrize("algorithm", [PPO, A2C])
@pytest.mark.parametrize("observe", [None, ["logits", "context"]])
def test_tokens_are_learned_by_algorithms_for_discrete_actions(algorithm, observe):
    native = gym.make_vec("PolicyTuning/Tokens-v0", num_envs=8, reward="classifier", observe=observe)
    env = GenVecEnv(native)
    assert env.action_space == gym.spaces.Discrete(128)
    model = algorithm("MultiInputPolicy", env, n_steps=16, seed=0)
    model.learn(2 * 16 * 8)
    assert [episode["l"] for episode in model.ep_info_buffer] == [16] * 16
    mean, _ = evaluate_policy(model, env, n_eval_episodes=6)
    assert np.isfinite(mean)


def test_off_policy_algorithms_take_tokens_too():
    env = GenVecEnv(gym.make_vec("PolicyTuning/Tokens-v0", num_envs=6, reward="classifier"))
    DQN("MultiInputPolicy", env, learning_starts=16 * 6, batch_size=8, buffer_size=1000).learn(2 * 16 * 6)
