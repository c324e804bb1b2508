import gymnasium as gym
import pytest
import torch

from genenv.envs import raster_ar
from genenv.envs.vqgan import make_sampler
from genenv.models.digits_vq import DigitsVQ
from genenv.models.vqgan_transformer import VQGANTransformer
from genenv.rollout import run_episode


@pytest.fixture
def make(monkeypatch):
    """Returns what makes a sampler of a random network of some size."""

    def with_network(*sizes, null_class=True, **kwargs):
        torch.manual_seed(0)
        transformer = VQGANTransformer(*sizes, num_classes=3, null_class=null_class)
        parts = {"vqgan": transformer.eval().requires_grad_(False), "vq": DigitsVQ().eval()}
        monkeypatch.setattr(raster_ar, "load_part", lambda part, backbone: parts[part])
        return make_sampler("digits", None, "cpu", torch.float32, False, False, **kwargs)

    return with_network


def statics(sampler):
    return {param.name: param.static.tolist() for param in sampler.params}


@pytest.mark.parametrize(("grid", "codes", "top_k"), [(4, 128, 128), (2, 700, 600)])
def test_the_hand_crafted_schedule_is_the_published_one(make, grid, codes, top_k):
    found = statics(make(grid, codes, 8, 1, 2))
    assert found.pop("guidance_weight") == [0.25] * grid  # our own: none was published
    assert found == {"token_temperature": [1.0] * grid, "top_k": [top_k] * grid, "top_p": [0.92] * grid}


@pytest.mark.parametrize("settings", [{"top_p": 0.5, "guidance_weight": 2.0}, {"token_temperature": 0.7}])
def test_settings_take_the_place_of_published_ones(make, settings):
    sizes = 4, 128, 8, 1, 2
    found, usual = statics(make(*sizes, **settings)), statics(make(*sizes))
    assert found == usual | {name: [value] * 4 for name, value in settings.items()}


def test_a_network_without_a_null_class_has_no_guidance(make):
    sampler = make(4, 128, 8, 1, 2, null_class=False)
    assert "guidance_weight" not in statics(sampler)
    with pytest.raises(ValueError, match=r"guidance_weight must be 0 or None .* got 1\.0"):
        make(4, 128, 8, 1, 2, null_class=False, guidance_weight=1.0)


def test_guidance_makes_the_digits_more_alike_their_class():
    images = {}
    for weight in (0.0, 3.0):
        env = gym.make_vec("AdaGen/VQGAN-v0", num_envs=200, reward="classifier", action_mode="physical")
        action = torch.tensor([1.0, 256.0, 1.0, weight], dtype=torch.float64).expand(200, 4)
        images[weight] = run_episode(env, lambda _, action=action: action, seed=0)
    assert images[3.0].returns.mean() > images[0.0].returns.mean()
