from types import SimpleNamespace

import gymnasium as gym
import pytest
import torch

from baselines import random
from baselines.common import Task
from baselines.random import random_actor, run
from genenv.actions import LatentActions, TokenActions
from genenv.rng import BatchRng


def drawn(monkeypatch, actions, seeds, step=0):
    """Returns the random actions of images with such seeds."""
    inner = SimpleNamespace(
        actions=actions, rng=BatchRng(torch.arange(seeds)), current_step=step, device="cpu"
    )
    monkeypatch.setattr(random, "unwrapped", lambda env: inner)
    return random_actor(None)({})


@pytest.mark.parametrize("number", [3, 32])
def test_random_tokens_are_equally_likely(monkeypatch, number):
    tokens = drawn(monkeypatch, TokenActions(number), 200 * number)
    assert tokens.dtype == torch.int64
    counts = tokens.bincount()
    assert len(counts) == number
    assert counts.min() > 120  # 5.6 standard deviations below 200


def test_random_latents_fill_their_bounds_and_differ_between_decisions(monkeypatch):
    latents = drawn(monkeypatch, LatentActions((1, 4, 4), 3.0), 2000)
    assert latents.shape == (2000, 1, 4, 4)
    assert 2.99 < latents.abs().max() <= 3.0
    torch.testing.assert_close(latents.mean(), torch.tensor(0.0), atol=0.05, rtol=0)
    assert not torch.equal(latents, drawn(monkeypatch, LatentActions((1, 4, 4), 3.0), 2000, step=1))


def test_random_actions_do_not_depend_on_the_batch(monkeypatch):
    many, few = (drawn(monkeypatch, TokenActions(1000), seeds) for seeds in (50, 7))
    assert torch.equal(many[:7], few)


@pytest.mark.parametrize("mode", ["residual", "physical"])
def test_random_schedules_are_legal(mode):
    env = gym.make_vec("AdaGen/MaskGIT-v0", num_envs=3, reward="none", action_mode=mode)
    env.reset(seed=0)
    for _ in range(4):
        action = random_actor(env)({})
        assert action.dtype == torch.float32
        env.step(action)


def test_the_repetitions_differ(toy):
    first, second = run(Task(env_kwargs=toy, seeds=(0, 1), num_images=100))
    assert first.schedule != second.schedule
    assert first.schedule["brightness"] == pytest.approx(
        [0.5, 0.5], abs=0.2
    )  # sigmoid(2 u), u uniform in [-1, 1]
