import gymnasium as gym
import numpy as np
import pytest

from genenv.wrappers import TerminalReward


class Brightness:
    name = "brightness"

    def __call__(self, images, context):
        return images.mean((1, 2, 3)) + context


def test_the_finished_image_is_paid_for_and_nothing_before():
    env = TerminalReward(gym.make("AdaGen/MaskGIT-v0", reward="none"), Brightness())
    env.reset(seed=0, options={"context": 3})
    for t in range(4):
        _, reward, terminated, _, info = env.step(np.zeros(4, np.float32))
        assert type(reward) is float
        assert terminated == (t == 3)
        if t < 3:
            assert reward == 0.0
            assert "reward/brightness" not in info
    assert reward == pytest.approx(info["image"].mean() + 3)
    assert info["reward/brightness"] == pytest.approx(reward)
