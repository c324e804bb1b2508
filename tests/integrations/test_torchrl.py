import gymnasium as gym
import pytest
import torch

import genenv

pytest.importorskip("torchrl")

from episodes import TOKENS
from tensordict.nn import TensorDictModule
from test_rollout import Choices
from torchrl.envs import GymEnv, GymWrapper, RewardSum, TransformedEnv, check_env_specs

from genenv.contexts import Contexts
from genenv.integrations.torchrl import GenTorchRLEnv
from genenv.vector_env import GenVectorEnv
from genenv.wrappers.vector import FlattenObservation

ENV_ID, NUM_ENVS = "AdaGen/MaskGIT-v0", 5


def make(env_id=ENV_ID, flat=False, **kwargs):
    kwargs = {"num_envs": NUM_ENVS, "reward": "classifier", "autoreset_mode": "Disabled"} | kwargs
    env = gym.make_vec(env_id, **kwargs)
    return FlattenObservation(env) if flat else env


def assert_episodes_are_native(env, native, num_steps, every_second=False):
    """Plays two episodes of a constant action in both; each last step has its own observation, not the next one."""
    flat = not isinstance(native.single_observation_space, gym.spaces.Dict)
    key = "observation" if flat else "tokens"
    env = TransformedEnv(env, RewardSum(), auto_unwrap=True)
    env.set_seed(3)  # resets, and the rollout resets again
    native.reset(seed=3)
    native.reset()
    shape = env.action_spec.shape
    constant = TensorDictModule(lambda x: torch.full(shape, 0.25), in_keys=[key], out_keys=["action"])
    found = env.rollout(2 * num_steps, constant, break_when_any_done=False)["next"]
    assert found["reward"].shape == found["episode_reward"].shape == (NUM_ENVS, 2 * num_steps, 1)
    for t in range(2 * num_steps):
        observation, reward, terminated, _, info = native.step(torch.full(shape, 0.25))
        observation = info.get("final_obs", observation)
        assert torch.equal(found[key][:, t], observation if flat else observation[key])
        assert torch.equal(found["reward"][:, t, 0], reward)
        assert torch.equal(found["episode_reward"][:, t, 0], reward)  # all of it is paid at the end
        assert torch.equal(found["terminated"][:, t, 0], terminated)
        if terminated.all() and every_second:
            native.reset()


@pytest.mark.parametrize("categorical", [False, True])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("env_id", genenv.env_ids())
def test_every_id_passes_torchrls_check(env_id, flat, categorical):
    smoothing = 0.0 if env_id in TOKENS else 0.5
    check_env_specs(GenTorchRLEnv(make(env_id, flat, smoothing=smoothing), categorical))


@pytest.mark.parametrize("num_steps", [1, 3])
def test_the_adapters_episodes_are_the_native_ones(num_steps):
    env, native = make(num_steps=num_steps), make(num_steps=num_steps, autoreset_mode="SameStep")
    assert_episodes_are_native(GenTorchRLEnv(env), native, num_steps)


@pytest.mark.parametrize("num_steps", [2, 3])
@pytest.mark.parametrize(("mode", "flat"), [("Disabled", False), ("Disabled", True), ("SameStep", True)])
def test_torchrls_own_wrapper_takes_numpy(mode, flat, num_steps):
    env = GymWrapper(make(num_steps=num_steps, output="numpy", autoreset_mode=mode, flat=flat))
    native = make(num_steps=num_steps, autoreset_mode="SameStep", flat=flat)
    check_env_specs(env)
    # TorchRL resets all environments even where they have reset themselves
    assert_episodes_are_native(env, native, num_steps, every_second=mode == "SameStep")


def test_torchrl_makes_an_id_by_its_name():
    env = GymEnv(ENV_ID, num_steps=2)
    check_env_specs(env)
    assert env.rollout(5)["next", "done"][:, 0].tolist() == [False, True]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            lambda: make(autoreset_mode="SameStep"),
            r"autoreset_mode must be 'Disabled' for TorchRL.*'SameStep'",
        ),
        (lambda: make(output="numpy"), "output must be 'torch' for TorchRL's adapter, got 'numpy'"),
        (
            lambda: gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync"),
            "env must hold a GenVectorEnv",
        ),
    ],
)
def test_an_environment_of_another_kind_is_refused(env, message):
    with pytest.raises(ValueError, match=message):
        GenTorchRLEnv(env())


@pytest.mark.parametrize("categorical", [False, True])
def test_actions_may_be_tokens(categorical):
    env = GenTorchRLEnv(
        GenVectorEnv(Choices(), Contexts(["a", "b"]), 3, autoreset_mode="Disabled"), categorical
    )
    check_env_specs(env)
    found = env.rollout(3)
    tokens = found["action"] if categorical else found["action"].long().argmax(-1)
    totals = found["next", "total"] if categorical else found["next", "total"].long().argmax(-1)
    assert torch.equal(totals, tokens.cumsum(1))
