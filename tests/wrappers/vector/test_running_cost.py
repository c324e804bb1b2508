import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from genenv import wrappers
from genenv.wrappers.vector import RunningCost

ENV_ID = "AdaGen/MaskGIT-v0"


def make(**kwargs):
    return gym.make_vec(ENV_ID, num_envs=3, **({"reward": "none", "schedule": "published"} | kwargs))


@pytest.mark.parametrize("output", ["torch", "numpy"])
@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_every_decision_is_charged_and_a_reset_is_free(mode, output):
    env = RunningCost(make(autoreset_mode=mode, output=output), "nfe", weight=0.25)
    env.reset(seed=0)
    action = torch.zeros(3, 4) if output == "torch" else np.zeros((3, 4), np.float32)
    paid = [env.step(action)[1] for _ in range(4)]
    assert [list(each) for each in paid] == [[-0.25 * 2 * t] * 3 for t in range(1, 5)]
    if mode == "NextStep":
        assert list(env.step(action)[1]) == [0.0] * 3


def test_the_single_twin_charges_alike():
    env = wrappers.RunningCost(gym.make(ENV_ID, reward="none", schedule="published"), "nfe", weight=0.25)
    env.reset(seed=0)
    assert [env.step(np.zeros(4, np.float32))[1] for _ in range(4)] == [-0.5, -1.0, -1.5, -2.0]


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_refused(weight):
    with pytest.raises(ValueError, match=f"weight must be finite, got {weight}"):
        RunningCost(make(), "nfe", weight)
    with pytest.raises(ValueError, match=f"weight must be finite, got {weight}"):
        wrappers.RunningCost(gym.make(ENV_ID), "nfe", weight)


def test_a_cost_that_nothing_tells_is_refused_with_what_there_is():
    env = RunningCost(make(), "energy")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"name must be one of nfe, .*schedule/mask_ratio.*, got 'energy'"):
        env.step(torch.zeros(3, 4))
