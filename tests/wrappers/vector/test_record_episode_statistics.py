import gymnasium as gym
import numpy as np
import pytest
import torch

from genenv.wrappers.vector import RecordEpisodeStatistics


class Ascending(gym.vector.VectorWrapper):
    """Pays image i the amount i + t for decision t, so that every decision counts."""

    def step(self, actions):
        t = self.unwrapped.current_step
        observation, reward, terminated, truncated, info = self.env.step(actions)
        if t < self.unwrapped.sampler.horizon:
            amount = torch.arange(self.num_envs, dtype=torch.float32) + t
            reward = reward + (amount.numpy() if isinstance(reward, np.ndarray) else amount)
        return observation, reward, terminated, truncated, info


def make(player, num_steps=3, **kwargs):
    env = gym.make_vec("AdaGen/MaskGIT-v0", num_envs=5, reward="none", num_steps=num_steps, **player.kwargs)
    return RecordEpisodeStatistics(Ascending(env), **kwargs)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_the_return_and_length_of_every_episode_are_in_its_last_info(player, num_steps):
    env = make(player, num_steps)
    found = [info for *_, info in player.steps(env, episodes=3)]
    ends = [info for info in found if "episode" in info]
    assert len(ends) == 3
    for info in ends:
        expected = [num_steps * i + sum(range(num_steps)) for i in range(5)]
        assert info["episode"].keys() == {"r", "l"}
        assert info["episode"]["r"].tolist() == expected
        assert info["episode"]["l"].tolist() == [num_steps] * 5
        assert info["_episode"].all()
        kind = np.ndarray if player.output == "numpy" else torch.Tensor
        assert {type(value) for value in (*info["episode"].values(), info["_episode"])} == {kind}


@pytest.mark.parametrize(
    "player", [("numpy", mode) for mode in ("SameStep", "NextStep", "Disabled")], indirect=True
)
def test_returns_are_those_of_gymnasiums_own_wrapper(player):
    env = make(player)
    theirs = gym.wrappers.vector.RecordEpisodeStatistics(env.env, stats_key="theirs")
    ours = RecordEpisodeStatistics(theirs)
    for *_, info in player.last_steps(ours, episodes=3):
        for name in ("r", "l"):
            assert np.array_equal(info["episode"][name], info["theirs"][name])


def test_the_queues_hold_the_latest_episodes(player):
    env = make(player, buffer_length=8)
    player.last_steps(env, episodes=2)
    assert list(env.return_queue) == [9, 12, 15, 3, 6, 9, 12, 15]
    assert list(env.length_queue) == [3] * 8
    assert env.episode_count == 10


def test_an_episode_that_is_given_up_is_not_counted(player):
    env = make(player)
    steps = player.steps(env, episodes=1)
    next(steps)
    env.reset(seed=1)
    action = np.zeros((5, 4), np.float32) if player.output == "numpy" else torch.zeros(5, 4)
    infos = [env.step(action)[-1] for _ in range(3)]
    assert infos[-1]["episode"]["r"].tolist() == [3, 6, 9, 12, 15]


def test_two_recorders_of_one_name_are_refused(player):
    env = RecordEpisodeStatistics(make(player))
    with pytest.raises(ValueError, match="stats_key must be new in info, got 'episode' a second time"):
        player.last_steps(env, episodes=1)
