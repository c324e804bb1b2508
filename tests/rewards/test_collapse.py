"""A scorer that looks at one image at a time makes images alike; leave-one-out FID beside it keeps them apart."""

import gymnasium as gym
import pytest
import torch

import genenv  # noqa: F401
from genenv.metrics.judge import Judge
from genenv.metrics.precision_recall import precision_recall
from genenv.rollout import run_episode

STEPS, PARAMS, IMAGES = 4, 4, 128


def make(num_envs, reward):
    return gym.make_vec(
        "AdaGen/MaskGIT-v0",
        num_envs=num_envs,
        num_steps=STEPS,
        reward=reward,
        contexts="cycle",
        schedule="published",
        autoreset_mode="Disabled",
    )


def play(env, actions, seed):
    """Returns an episode under actions (T, N, A)."""
    step = iter(actions)
    return run_episode(env, lambda observation: next(step), seed=seed)


def tune(reward):
    """Returns the schedule (T, 1, A) after ten steps of REINFORCE from the hand-crafted one."""
    env, generator = make(IMAGES, reward), torch.Generator().manual_seed(0)
    mean, std, rate = torch.zeros(STEPS, 1, PARAMS), 0.5, 0.6
    for batch in range(10):
        noise = torch.randn(STEPS, IMAGES, PARAMS, generator=generator)
        paid = play(env, mean + std * noise, seed=batch * IMAGES).returns
        advantage = (paid - paid.mean()) / paid.std()
        mean = mean + rate / std * (noise * advantage[:, None]).mean(1, keepdim=True)
    return mean


@pytest.fixture(scope="module")
def recall():
    """Maps a reward to the held-out recall of what it makes; None: of the hand-crafted schedule."""
    judge, env = Judge("digits"), make(1000, "none")

    def measured(reward):
        mean = torch.zeros(STEPS, 1, PARAMS) if reward is None else tune(reward)
        episode = play(env, mean.expand(-1, 1000, -1), seed=10**9)
        return precision_recall(judge.features(episode.images), judge.real)[1]

    return measured


def test_a_fixed_scorer_alone_loses_recall_and_leave_one_out_fid_holds_it(recall):
    start = recall(None)  # 0.533
    alone = recall("classifier")  # 0.322
    held = recall({"classifier": 1.0, "loo_fid": 2.0, "normalise": True})  # 0.542
    assert alone < 0.8 * start
    assert held > 0.95 * start
