import numpy as np
import pytest
import torch
from gymnasium import spaces

from baselines.common import Task
from baselines.random import random_actor, run


def test_random_actions_fill_the_box_and_repeat_with_the_seed():
    box = spaces.Box(np.array([-1, 2], np.float32), np.array([1, 6], np.float32))
    observation = {"step": torch.zeros(4000)}
    actions = random_actor(box, 1)(observation)
    assert actions.shape == (4000, 2)
    assert torch.all((actions >= torch.tensor([-1, 2])) & (actions <= torch.tensor([1, 6])))
    torch.testing.assert_close(
        actions.mean(0), torch.tensor([0.0, 4.0]), atol=0.1, rtol=0
    )  # 5 standard errors
    assert torch.equal(actions, random_actor(box, 1)(observation))
    assert not torch.equal(actions, random_actor(box, 2)(observation))


def test_the_repetitions_differ(toy):
    first, second = run(Task(env_kwargs=toy, seeds=2, num_images=100))
    assert first.schedule != second.schedule
    assert first.schedule["brightness"] == pytest.approx(
        [0.5, 0.5], abs=0.2
    )  # sigmoid(2 u), u uniform in [-1, 1]
