import itertools

import numpy as np
import pytest
import torch


class Player:
    """Plays episodes of a vector environment of any output and autoreset mode with fixed random actions."""

    def __init__(self, output, mode):
        self.kwargs = {"output": output, "autoreset_mode": mode}
        self.output, self.mode = output, mode

    def steps(self, env, episodes, seed=0):
        """Yields what each step returns; under NextStep also what the steps return that reset."""
        env.reset(seed=seed)
        generator = np.random.default_rng(seed)
        horizon = env.unwrapped.sampler.horizon
        for episode, t in itertools.product(range(episodes), range(horizon)):
            if episode and t == 0 and self.mode == "NextStep":
                yield env.step(self._action(env, generator))
            if episode and t == 0 and self.mode == "Disabled":
                env.reset(options={"reset_mask": np.ones(env.num_envs, bool)})
            yield env.step(self._action(env, generator))

    def last_steps(self, env, episodes, seed=0):
        """Returns what the last step of each episode returns."""
        return [result for result in self.steps(env, episodes, seed) if bool(result[2].all())]

    def _action(self, env, generator):
        action = generator.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        return action if self.output == "numpy" else torch.from_numpy(action)


@pytest.fixture(
    params=itertools.product(["torch", "numpy"], ["SameStep", "NextStep", "Disabled"]), ids="-".join
)
def player(request):
    return Player(*request.param)
