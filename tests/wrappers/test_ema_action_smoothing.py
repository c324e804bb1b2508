import gymnasium as gym
import numpy as np
import pytest
from oracles import smooth

from genenv.wrappers import EMAActionSmoothing
from genenv.wrappers import vector as batched


@pytest.mark.parametrize("decay", [0.0, 0.4, 0.8])
def test_each_episode_is_smoothed_on_its_own(decay):
    env = EMAActionSmoothing(gym.make("AdaGen/MaskGIT-v0", reward="none", observe=["prev_action"]), decay)
    generator = np.random.default_rng(0)
    for _ in range(2):
        env.reset(seed=0)
        actions = generator.standard_normal((4, 4)).astype(np.float32)
        applied, buffer = [], np.empty(4, np.float32)
        for action in actions:
            buffer[:] = action  # a caller may reuse its array
            applied.append(env.step(buffer)[0]["prev_action"])
            buffer[:] = np.nan
        expected = np.array([smooth(column, decay) for column in actions.T.tolist()]).T
        np.testing.assert_allclose(applied, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
@pytest.mark.parametrize(
    "wrapper", [EMAActionSmoothing, batched.EMAActionSmoothing], ids=["single", "vector"]
)
def test_a_decay_outside_its_range_is_refused(wrapper, decay):
    make = gym.make if wrapper is EMAActionSmoothing else gym.make_vec
    with pytest.raises(ValueError, match=rf"smoothing must be in \[0, 1\), got {decay}"):
        wrapper(make("AdaGen/MaskGIT-v0", reward="none"), decay)


def test_a_refused_reset_leaves_the_average():
    env, same = (EMAActionSmoothing(gym.make("AdaGen/MaskGIT-v0", reward="none"), 0.6) for _ in range(2))
    for each in (env, same):
        each.reset(seed=0)
        each.step(np.full(4, 0.9, np.float32))
    with pytest.raises(ValueError, match="got 99"):
        env.reset(seed=1, options={"context": 99})
    found, expected = (each.step(np.zeros(4, np.float32))[-1] for each in (env, same))
    assert found["schedule/mask_ratio"] == expected["schedule/mask_ratio"]
