import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

from genenv.wrappers.vector import RecordImages


def make(player, **kwargs):
    env = gym.make_vec("AdaGen/MaskGIT-v0", num_envs=3, reward="none", contexts="cycle", **player.kwargs)
    return RecordImages(env, **kwargs)


def test_the_images_that_were_finished_are_kept(player):
    env = make(player, buffer_length=5)
    infos = [info for *_, info in player.last_steps(env, episodes=3, seed=4)]
    finals = [info.get("final_info", info) for info in infos]
    images = [torch.as_tensor(image) for final in finals for image in final["image"]]
    contexts = [int(context) for final in finals for context in final["context"]]
    assert contexts == [4, 5, 6, 5, 6, 7, 6, 7, 8]
    assert list(env.contexts) == contexts[-5:]
    assert len(env.images) == 5
    assert all(torch.equal(kept, image) for kept, image in zip(env.images, images[-5:], strict=True))
    assert env.episode_id == 3


def test_the_images_are_written(player, tmp_path):
    folder = tmp_path / "new" / "pictures"
    env = make(player, folder=folder, buffer_length=9, episode_trigger=lambda episode: episode != 1)
    player.last_steps(env, episodes=3)
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f"episode-000000-image-000{i}-context-{i}.png" for i in range(3)),
        *(f"episode-000002-image-000{i}-context-{i + 2}.png" for i in range(3)),
    ]
    for path, image in zip(sorted(folder.iterdir()), env.images, strict=True):
        pixels = np.asarray(Image.open(path))
        assert pixels.shape == (8, 8)
        assert np.abs(pixels / 255 - image[0].numpy()).max() <= 0.5 / 255 + 1e-6


def test_colours_are_written(tmp_path):
    env = gym.make_vec("AdaGen/MaskGIT-v0", num_envs=2, reward="none")
    recorder = RecordImages(env, folder=tmp_path)
    recorder._record(torch.tensor([1.0, 0.0, 0.5])[None, :, None, None].expand(2, 3, 4, 6), [1, 0])
    pixels = np.asarray(Image.open(tmp_path / "episode-000000-image-0001-context-0.png"))
    assert pixels.shape == (4, 6, 3)
    assert pixels[0, 0].tolist() == [255, 0, 128]


def test_what_cannot_be_kept_is_refused(monkeypatch, tmp_path):
    env = gym.make_vec("AdaGen/MaskGIT-v0", num_envs=2, reward="none")
    with pytest.raises(ValueError, match="buffer_length must be at least 0, got -1"):
        RecordImages(env, buffer_length=-1)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"writing images needs Pillow: pip install 'genenv\[viz\]'"):
        RecordImages(env, folder=tmp_path)
