import io

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

from genenv.rewards import available, make_reward
from genenv.rewards.png_size import PNGSize

CONTEXT = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_the_size_of_the_file(channels):
    images = torch.rand(4, channels, 9, 7, generator=torch.Generator().manual_seed(0))
    paid = PNGSize()(images, CONTEXT)
    for image, size in zip(images, paid, strict=True):
        pixels = np.asarray((255 * image).round().byte()).transpose(1, 2, 0)
        file = io.BytesIO()
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(file, format="png")
        assert size.item() == pytest.approx(len(file.getvalue()) / 1000)


def test_a_plain_image_is_smaller_than_noise():
    noise = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    plain, rich = PNGSize()(torch.cat([torch.full_like(noise, 0.5), noise]), CONTEXT[:2])
    assert plain < rich


def test_every_backbone_has_it_and_its_weight_may_be_negative():
    assert "png_size" in available("digits")
    assert "png_size" in available("imagenet256-dit-xl-2")
    reward = make_reward({"png_size": -1.0}, "digits", "cpu")
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(reward(images, CONTEXT), -PNGSize()(images, CONTEXT))
    env = gym.make_vec("AdaGen/MaskGIT-v0", num_envs=2, reward="png_size", num_steps=1)
    env.reset(seed=0)
    paid = env.step(torch.zeros(2, 4))[1]
    assert (paid > 0.06).all()
