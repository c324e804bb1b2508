import gymnasium as gym
import pytest
from gymnasium.vector import AutoresetMode

from genenv.wrappers.vector import (
    EMAActionSmoothing,
    FlattenObservation,
    InterventionWindow,
    RecordEpisodeStatistics,
    RecordImages,
    RunningCost,
    TerminalReward,
)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_every_wrapper_says_when_episodes_start_again(mode):
    env = gym.make_vec("AdaGen/MaskGIT-v0", num_envs=2, reward="none", autoreset_mode=mode.value)
    wrappers = [
        lambda env: TerminalReward(env, lambda images, context: images.sum((1, 2, 3))),
        lambda env: InterventionWindow(env, "fixed:1:2"),
        lambda env: EMAActionSmoothing(env, 0.5),
        lambda env: RunningCost(env, "schedule/mask_ratio"),
        FlattenObservation,
        RecordEpisodeStatistics,
        RecordImages,
    ]
    for wrap in wrappers:
        env = wrap(env)
        assert env.autoreset_mode is mode


@pytest.mark.parametrize("wrapper", [FlattenObservation, RecordEpisodeStatistics, RecordImages])
def test_another_environment_is_refused(wrapper):
    with pytest.raises(ValueError, match=r"env must hold a GenVectorEnv, got .*; make it with gym.make_vec"):
        wrapper(gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync"))
