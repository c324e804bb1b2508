import gymnasium as gym
import numpy as np
import pytest
import torch
from episodes import SHORT, TOKENS, compared

from genenv import wrappers
from genenv.rollout import run_episode
from genenv.scopes import Adaptive, Detector
from genenv.wrappers import vector

MASKGIT = "AdaGen/MaskGIT-v0"
EAGER = Detector(
    start_threshold=0.6,
    end_threshold=0.8,
    start_patience=1,
    end_patience=1,
    latest_start=0.7,
    latest_end=1.0,
    shortest=0.2,
)
CASES = [(env_id, mode) for env_id in SHORT for mode in ("residual", "physical")]
CASES = [case for case in CASES if case not in [(env_id, "physical") for env_id in TOKENS]]


def arguments(env_id, mode="residual", **kwargs):
    return SHORT[env_id] | compared(env_id, mode) | {"reward": "none", "action_mode": mode} | kwargs


def played(env, actions, seed):
    """Returns the infos of an episode."""
    env.reset(seed=seed)
    return [env.step(action)[-1] for action in actions]


@pytest.mark.parametrize("scope", ["fixed:1:2", "random:2"])
@pytest.mark.parametrize(("env_id", "mode"), CASES)
def test_one_image_is_its_twins(env_id, mode, scope):
    single = wrappers.InterventionWindow(gym.make(env_id, **arguments(env_id, mode)), scope)
    batch = vector.InterventionWindow(gym.make_vec(env_id, num_envs=1, **arguments(env_id, mode)), scope)
    single.action_space.seed(0)
    actions = [single.action_space.sample() for _ in range(batch.unwrapped.sampler.horizon)]
    infos, each = played(single, actions, seed=5), iter(actions)
    episode = run_episode(batch, lambda observation: torch.as_tensor(next(each))[None], seed=5)
    assert [info["intervened"] for info in infos] == episode.diagnostics["intervened"][:, 0].tolist()
    tolerance = 1e-4 if mode == "physical" else 0.0  # a schedule in float32 here, in float64 there
    np.testing.assert_allclose(infos[-1]["image"], episode.images[0].numpy(), atol=tolerance, rtol=0)


def test_the_adaptive_window_is_its_twins():
    kwargs = arguments(MASKGIT, num_steps=8)
    single = wrappers.InterventionWindow(gym.make(MASKGIT, **kwargs), Adaptive(EAGER))
    batch = vector.InterventionWindow(gym.make_vec(MASKGIT, num_envs=1, **kwargs), Adaptive(EAGER))
    zeros = [np.zeros(4, np.float32)] * 8
    for seed in range(3):
        found = [info["intervened"] for info in played(single, zeros, seed)]
        episode = run_episode(batch, lambda observation: torch.zeros(1, 4), seed=seed)
        assert found == episode.diagnostics["intervened"][:, 0].tolist()
        assert True in found
        assert False in found


def test_judges_forget_with_a_seed():
    class Judge:
        resets = 0

        def __call__(self, images, context):
            return images.mean((1, 2, 3))

        def reset(self):
            self.resets += 1

    judge = Judge()
    env = wrappers.InterventionWindow(gym.make(MASKGIT, reward="none"), "adaptive", judge, judge)
    env.reset(seed=1)
    env.reset()
    assert judge.resets == 2


def test_smoothing_stands_outside():
    for smoothed in (
        gym.make(MASKGIT, smoothing=0.5),
        wrappers.EMAActionSmoothing(gym.make(MASKGIT), 0.5),
    ):
        with pytest.raises(ValueError, match=r"smoothing must be 0 inside an InterventionWindow, got 0\.5"):
            wrappers.InterventionWindow(smoothed, "full")
    wrappers.InterventionWindow(wrappers.EMAActionSmoothing(gym.make(MASKGIT), 0), "full")


def test_another_environment_is_refused():
    with pytest.raises(ValueError, match=r"env must hold a GenEnv, got .*; make it with gym.make"):
        wrappers.InterventionWindow(gym.make("CartPole-v1"), "full")


def test_an_episode_that_is_over_is_refused_in_the_environments_words():
    env = wrappers.InterventionWindow(gym.make(MASKGIT, num_steps=1), "full")
    played(env, [np.zeros(4, np.float32)], seed=0)
    with pytest.raises(gym.error.ResetNeeded, match="the episode is over"):
        env.step(np.zeros(4, np.float32))


def test_a_wrong_action_is_refused_in_the_environments_words():
    env = wrappers.InterventionWindow(gym.make(MASKGIT), "full")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action must have shape \(4,\), got \(3,\)"):
        env.step(np.zeros(3, np.float32))
