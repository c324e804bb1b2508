import gymnasium as gym
import numpy as np
import pytest

from genenv.wrappers import TerminalReward
from genenv.wrappers import vector as batched


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


@pytest.mark.parametrize("vector", [False, True])
def test_a_refused_reset_leaves_what_a_reward_remembers(vector):
    class Forgetful(Brightness):
        forgotten = 0

        def reset(self):
            self.forgotten += 1

    reward = Forgetful()
    make, wrap = (gym.make_vec, batched.TerminalReward) if vector else (gym.make, TerminalReward)
    env = wrap(make("AdaGen/MaskGIT-v0", reward="none"), reward)
    env.reset(seed=0)
    assert reward.forgotten == 1
    with pytest.raises(ValueError, match=r"got 1\.5"):
        env.reset(seed=1.5)
    assert reward.forgotten == 1
