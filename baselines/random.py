"""Uniformly random schedules: the 0 of a normalised score.

python -m baselines.random --env-id AdaGen/MaskGIT-v0 --seeds 3 --out random.json
"""

from __future__ import annotations

import sys

import torch
from gymnasium import spaces
from torch import Tensor

from baselines.common import Bench, Result, Task, main
from genenv.protocols import Actor, Observation


def random_actor(space: spaces.Box, seed: int) -> Actor:
    """Returns an actor that draws every action uniformly from the box, independently for each image and decision."""
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.from_numpy(space.low), torch.from_numpy(space.high)

    def act(observation: Observation) -> Tensor:
        some = next(iter(observation.values()))
        uniform = torch.rand(len(some), len(low), generator=generator)
        return (low + (high - low) * uniform).to(some.device)

    return act


def run(task: Task) -> list[Result]:
    """Returns the results of the repetitions."""
    bench = Bench(task)
    space = bench.evaluator.env.single_action_space
    assert isinstance(space, spaces.Box)
    return [bench.result("random", seed, random_actor(space, seed)) for seed in range(task.seeds)]


if __name__ == "__main__":
    sys.exit(main(Task, run, __doc__))
