import gymnasium as gym
import numpy as np
import pytest
import torch

from genenv.rewards.mixture import Mixture
from genenv.wrappers.vector import TerminalReward


class Brightness:
    name = "brightness"

    def __call__(self, images, context):
        return images.mean((1, 2, 3))


class Rank:
    """Sees the whole batch: how many images are darker."""

    def __call__(self, images, context):
        brightness = images.mean((1, 2, 3))
        return (brightness[:, None] > brightness).float().sum(1)


def make(reward, **kwargs):
    return TerminalReward(gym.make_vec("AdaGen/MaskGIT-v0", num_envs=4, reward="none", **kwargs), reward)


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
@pytest.mark.parametrize("output", ["torch", "numpy"])
def test_finished_images_are_paid_for_and_nothing_before(mode, output):
    env = make(
        Mixture({"brightness": Brightness(), "rank": Rank()}, {"rank": 0.5}),
        autoreset_mode=mode,
        output=output,
    )
    zeros = np.zeros((4, 4), np.float32) if output == "numpy" else torch.zeros(4, 4)
    for seed in (0, None):
        env.reset(seed=seed)
        for t in range(4):
            _, reward, _, _, info = env.step(zeros)
            assert type(reward) is type(zeros)
            if t < 3:
                assert not reward.any()
                assert not any(name.startswith("reward/") for name in info)
        final = info.get("final_info", info)
        images = torch.as_tensor(final["image"])
        parts = {"brightness": Brightness()(images, None), "rank": Rank()(images, None)}
        torch.testing.assert_close(torch.as_tensor(reward), parts["brightness"] + 0.5 * parts["rank"])
        for name, value in parts.items():
            assert type(final[f"reward/{name}"]) is type(zeros)
            torch.testing.assert_close(torch.as_tensor(final[f"reward/{name}"]), value)
            assert final[f"_reward/{name}"].all()


def test_two_rewards_around_each_other_both_pay():
    env = TerminalReward(make(Brightness()), Rank())
    env.reset(seed=0)
    for _ in range(4):
        _, reward, _, _, info = env.step(torch.zeros(4, 4))
    final = info["final_info"]
    torch.testing.assert_close(reward, final["reward/brightness"] + final["reward/Rank"])


def test_a_reset_step_pays_nothing():
    env = make(Brightness(), autoreset_mode="NextStep")
    env.reset(seed=0)
    for _ in range(4):
        env.step(torch.zeros(4, 4))
    assert not env.step(torch.zeros(4, 4))[1].any()
