import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from episodes import TOKENS
from gymnasium.envs.registration import EnvSpec

import genenv
from genenv.console import USER_ERRORS
from genenv.make import single
from genenv.registration import defaults
from genenv.rewards.mixture import Mixture
from genenv.wrappers.vector import EMAActionSmoothing, TerminalReward

ENV_ID = "AdaGen/MaskGIT-v0"
KWARGS = {
    "num_steps": None,
    "reward": {"loo_fid": 2.0},
    "smoothing": 0.5,
    "observe": ["features", "step"],
    "contexts": [0],
}


def test_registering_again_changes_nothing():
    before = dict(gym.registry)
    genenv.registration.register_ids()
    assert gym.registry == before


@pytest.mark.parametrize("env_id", genenv.env_ids())
def test_a_spec_survives_json(env_id):
    spec = gym.make(env_id, **KWARGS | ({"smoothing": 0.0} if env_id in TOKENS else {})).spec
    restored = EnvSpec.from_json(spec.to_json())
    assert restored == spec
    env = gym.make(restored)
    assert env.unwrapped.sampler.horizon == gym.make(env_id, num_steps=None).unwrapped.sampler.horizon
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"features", "step"}


def test_keyword_arguments_put_the_wrappers_around_the_environment():
    env = gym.make_vec(ENV_ID, num_envs=2, reward="loo_fid", smoothing=0.8)
    assert isinstance(env, EMAActionSmoothing)
    assert isinstance(env.env, TerminalReward)
    assert env.env.reward.weights == {"loo_fid": 1.0}
    assert env.unwrapped.num_envs == 2


def test_no_reward_and_no_smoothing_need_no_wrapper():
    env = gym.make_vec(ENV_ID, num_envs=2, reward="none", smoothing=0.0)
    assert env is env.unwrapped


def brightness(backbone, device):
    assert (backbone, device) == ("digits", "cpu")
    return lambda images, context: images.mean((1, 2, 3))


def test_a_reward_may_be_a_factory_of_any_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_rewards", sys.modules[__name__])
    env = gym.make_vec(ENV_ID, num_envs=2, reward={"my_rewards:brightness": 3.0})
    env.reset(seed=0)
    for _ in range(4):
        _, reward, _, _, info = env.step(torch.zeros(2, 4))
    torch.testing.assert_close(reward, 3 * info["final_info"]["image"].mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"reward": "clipp"}, "reward must be one of none, .*loo_fid.* or 'module:factory', got 'clipp'"),
        ({"reward": {"loo_fid": 1.0, "x": 1.0}}, "reward must be one of .*, got 'x'"),
        ({"reward": {}}, "reward must name at least one reward"),
        ({"reward": {"loo_fid": float("nan")}}, "the weight of reward 'loo_fid' must be finite, got nan"),
        (
            {"backbone": "digit"},
            "backbone must be 'digits', another name .* or a folder of the zoo, got 'digit'",
        ),
        ({"device": "tpu9"}, "device 'tpu9' cannot be used here: .*; use device='cpu'"),
        ({"dtype": "float8"}, "dtype must be one of float32, bfloat16, float16, got 'float8'"),
        ({"render_mode": "ansi"}, r"render_mode must be None or one of \('rgb_array', 'human'\), got 'ansi'"),
        ({"output": "jax"}, "output must be 'torch' or 'numpy', got 'jax'"),
        ({"observe": ["pixels"]}, "observe must name some of tokens, features, step, .*, got 'pixels'"),
        ({"contexts": "random"}, "contexts must be 'uniform', 'cycle', 'grouped:G' .*, got 'random'"),
        ({"contexts": [3, 12]}, r"context must be a label in 0\.\.9, got 12"),
        ({"action_mode": "raw"}, "action_mode must be 'residual' or 'physical', got 'raw'"),
        ({"autoreset_mode": "Never"}, "autoreset_mode must be one of .*'SameStep'.*, got 'Never'"),
        ({"smoothing": 1.0}, r"smoothing must be in \[0, 1\), got 1.0"),
        ({"smoothing": -0.1}, r"smoothing must be in \[0, 1\), got -0.1"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"num_steps": 10**9}, "num_steps must be at most 10,000, got 1000000000"),
        ({"guidance_weight": 10**400}, r"guidance_weight must be a finite number in \[0, inf\), got 1000"),
        ({"contexts": f"grouped:{10**22}"}, r"'grouped:G' \(G in 1\.\.2\*\*63-1\) .*, got 'grouped:1000"),
        ({"device": "meta"}, "device 'meta' cannot be used here: .*; use device='cpu'"),
        ({"reward": None}, "reward must be a name, .* got None; use reward='none' for no reward"),
        ({"reward": ["loo_fid"]}, r"reward must be a name, .* got \['loo_fid'\]; use reward='none'"),
        ({"reward": {"loo_fid": "1"}}, "the weight of reward 'loo_fid' must be a number, got '1'"),
        (
            {"reward": "math:nofn"},
            "reward 'math:nofn' cannot be loaded: .*'nofn'; 'module:factory' must name",
        ),
        ({"reward": "nomodule:x"}, "reward 'nomodule:x' cannot be loaded: No module named 'nomodule'; "),
        ({"contexts": 3}, "contexts must be 'uniform', 'cycle', 'grouped:G' .* or a list of labels, got 3"),
        ({"contexts": [1.7]}, r"context must be a label in 0\.\.9, got 1\.7"),
        ({"device": None}, "device must be a name, such as 'cpu', 'cuda' or 'auto', got None"),
        ({"backbone": None}, "backbone must be a name or a folder, such as 'digits', got None"),
        (
            {"num_steps": "4"},
            "num_steps must be a whole number of steps, .* got '4'",
        ),
        (
            {"num_steps": 2.5},
            "num_steps must be a whole number of steps, .* got 2.5",
        ),
        (
            {"num_steps": True},
            "num_steps must be a whole number of steps, .* got True",
        ),
        ({"observe": "features"}, "observe must be a list of names, such as .* got 'features'"),
        ({"observe": []}, r"observe must be a list of names, such as .* got \[\]"),
        ({"observe": [3]}, r"observe must be a list of names, such as .* got \[3\]"),
        ({"smoothing": None}, r"smoothing must be a number in \[0, 1\); 0 does not smooth, got None"),
    ],
)
def test_a_wrong_keyword_argument_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        gym.make_vec(ENV_ID, num_envs=2, **kwargs)


def test_a_wrong_number_of_images_is_refused():
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        gym.make_vec(ENV_ID, num_envs=0)
    with pytest.raises(ValueError, match="num_envs must be a whole number of images, such as 64, got 2"):
        gym.make_vec(ENV_ID, num_envs=2.0)
    for number in (10**15, 10**18, 10**30):
        with pytest.raises(
            ValueError, match=f"num_envs must be a number of images that fit .*, got {number}"
        ):
            gym.make_vec(ENV_ID, num_envs=number, reward="none")


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
@pytest.mark.parametrize("name", ["foo", "frameskip"])
def test_an_unknown_keyword_argument_is_a_type_error_as_in_python(make, name):
    message = rf"got an unexpected keyword argument '{name}'; the environment takes num_envs, .*, compile"
    with pytest.raises(TypeError, match=message):
        make(ENV_ID, **{name: 1})


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_the_commands_tell_an_unknown_keyword_argument_in_one_line(make):
    with pytest.raises(USER_ERRORS, match="argument 'foo'"):
        make(ENV_ID, foo=1)


def test_an_argument_of_one_paradigm_is_named_by_its_ids_alone():
    with pytest.raises(TypeError, match="argument 'solver'"):
        gym.make_vec("AdaGen/VAR-v0", solver="euler")
    with pytest.raises(TypeError, match=r"argument 'foo'; .*, compile, .*solver"):
        gym.make_vec("AdaGen/DiT-v0", foo=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_steps", np.int64(3)),
        ("num_steps", np.array(3)),
        ("smoothing", np.float32(0.5)),
        ("compile", np.False_),
        ("contexts", np.array([3, 1])),
        ("observe", np.array(["step", "context"])),
        ("dtype", np.str_("float32")),
    ],
)
def test_numpys_values_are_taken_as_pythons(name, value):
    env, same = (
        gym.make_vec(ENV_ID, num_envs=np.int32(2), **{"reward": "none", name: v})
        for v in (value, value.tolist())
    )
    assert env.num_envs == 2
    assert env.single_observation_space == same.single_observation_space
    assert env.unwrapped.sampler.horizon == same.unwrapped.sampler.horizon
    assert torch.equal(env.reset(seed=0)[0]["context"], same.reset(seed=0)[0]["context"])


@pytest.mark.parametrize(
    ("name", "value"), [("output", "torch"), ("autoreset_mode", "SameStep"), ("num_envs", 2)]
)
def test_a_single_environment_refuses_what_only_a_batch_has(name, value):
    with pytest.raises(ValueError, match=f"gym.make has {name}=.* only, got {value!r}; use gym.make_vec"):
        gym.make(ENV_ID, **{name: value})


def test_a_single_environment_accepts_what_it_is_anyway():
    env = single(**defaults(ENV_ID) | {"output": "numpy", "autoreset_mode": "Disabled", "reward": "none"})
    assert env.reset(seed=0)[0]["tokens"].shape == (4, 4)


def test_an_unknown_id_is_refused_by_gymnasium():
    with pytest.raises(gym.error.NameNotFound, match="MaskGTI"):
        gym.make("AdaGen/MaskGTI-v0")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_network_runs_in_the_dtype_and_the_images_stay_float32(dtype):
    env = gym.make_vec(ENV_ID, num_envs=2, reward="none", dtype=dtype, observe=["tokens", "features"])
    assert next(env.unwrapped.sampler.network.parameters()).dtype == getattr(torch, dtype)
    observation, _ = env.reset(seed=0)
    assert observation["features"].dtype == torch.float32
    for _ in range(4):
        info = env.step(torch.zeros(2, 4))[-1]
    assert info["final_info"]["image"].dtype == torch.float32


def test_the_best_device_can_be_left_to_the_environment():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    env = gym.make_vec(ENV_ID, num_envs=1, reward="none", device="auto")
    assert env.unwrapped.device.type == expected


def test_the_reward_of_a_single_environment_is_paid_at_its_end():
    env = gym.make(ENV_ID)
    env.reset(seed=0)
    rewards = [env.step(np.zeros(4, np.float32))[1] for _ in range(4)]
    assert rewards[:3] == [0.0, 0.0, 0.0]
    assert np.isfinite(rewards[3])


def test_a_mixture_refuses_weights_of_rewards_it_has_not():
    with pytest.raises(ValueError, match=r"weights name no reward: \['b'\]; rewards are \['a'\]"):
        Mixture({"a": lambda images, context: images.sum((1, 2, 3))}, {"b": 1.0})


def test_gymnasium_collects_the_frames_of_an_episode():
    env = gym.make(ENV_ID, render_mode="rgb_array_list", num_steps=3)
    env.reset(seed=0)
    for _ in range(3):
        env.step(env.action_space.sample())
    frames = env.render()
    assert len(frames) == 4
    assert {frame.shape for frame in frames} == {(256, 516, 3)}
    assert not np.array_equal(frames[0], frames[-1])


def test_gymnasium_warns_of_a_render_mode_that_does_not_exist():
    with (
        pytest.warns(UserWarning, match=r"not in the possible render_modes \(\['rgb_array', 'human'\]\)"),
        pytest.raises(ValueError, match="render_mode must be None or one of"),
    ):
        gym.make(ENV_ID, render_mode="ansi")


def test_gymnasium_writes_a_video_of_an_episode(tmp_path):
    pytest.importorskip("moviepy")
    env = gym.wrappers.RecordVideo(gym.make(ENV_ID, render_mode="rgb_array"), str(tmp_path / "videos"))
    env.reset(seed=0)
    for _ in range(4):
        env.step(env.action_space.sample())
    env.close()
    assert [path.suffix for path in (tmp_path / "videos").iterdir()] == [".mp4"]


def test_gymnasium_shows_frames_in_a_window(monkeypatch):
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gym.wrappers.HumanRendering(gym.make(ENV_ID, render_mode="rgb_array"))
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()
