import gymnasium as gym
import numpy as np
import pytest
import torch

from genenv.wrappers.vector import FlattenObservation

ENTRIES = [None, ["features", "context"], ["step", "prev_action", "tokens"]]


def host(value):
    return value.numpy() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("observe", ENTRIES)
def test_observations_are_flat_as_in_gymnasium(player, observe):
    plain, flat = (
        gym.make_vec("AdaGen/MaskGIT-v0", num_envs=3, reward="none", observe=observe, **player.kwargs)
        for _ in range(2)
    )
    flat = FlattenObservation(flat)
    space = plain.single_observation_space

    def assert_flat(found, observation):
        assert type(found) is type(next(iter(observation.values())))
        assert host(found) in flat.observation_space
        for i in range(3):
            image = {name: host(value)[i] for name, value in observation.items()}
            assert np.array_equal(host(found)[i], gym.spaces.flatten(space, image).astype(np.float32))

    assert flat.single_observation_space.dtype == np.float32
    assert flat.single_observation_space.shape == gym.spaces.flatten_space(space).shape
    assert_flat(flat.reset(seed=0)[0], plain.reset(seed=0)[0])
    results = zip(player.steps(flat, 2), player.steps(plain, 2), strict=True)
    for (found, *_, info), (expected, *_, plain_info) in results:
        assert_flat(found, expected)
        assert info.keys() == plain_info.keys()
        if "final_obs" in info:
            assert_flat(info["final_obs"], plain_info["final_obs"])


def test_flat_observations_are_refused():
    env = FlattenObservation(gym.make_vec("AdaGen/MaskGIT-v0", num_envs=2, reward="none"))
    with pytest.raises(ValueError, match="the observation space must be a Dict, got Box"):
        FlattenObservation(env)


def test_an_entry_of_an_unknown_kind_is_refused():
    env = gym.make_vec("AdaGen/MaskGIT-v0", num_envs=2, reward="none")
    env.single_observation_space = gym.spaces.Dict({"prompt": gym.spaces.Text(8)})
    with pytest.raises(ValueError, match="observation 'prompt' must be a Box or Discrete, got Text"):
        FlattenObservation(env)
