"""Uniformly random actions: the 0 of a normalised score.

python -m baselines.random --env-id AdaGen/MaskGIT-v0 --out random.json
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from baselines.common import Bench, Result, Task, main
from genenv.protocols import Actor, Observation
from genenv.rng import Purpose
from genenv.vector_env import unwrapped


def random_actor(env: VectorEnv) -> Actor:
    """Returns an actor that draws every action uniformly from the action space, independently for each decision.

    An image's actions come from its own random stream, so that they do not depend on its batch.
    """
    inner = unwrapped(env)
    field = inner.actions.field
    low, high = (
        torch.tensor(bound, dtype=torch.float64, device=inner.device) for bound in (field.low, field.high)
    )

    def act(observation: Observation) -> Tensor:
        uniform = inner.rng.at(inner.current_step).uniform(*field.shape, purpose=Purpose.POLICY)
        if field.dtype == torch.int64:
            return (low + (uniform * (high - low + 1)).floor()).long()
        return (low + (high - low) * uniform).to(field.dtype)

    return act


def run(task: Task) -> Iterator[Result]:
    """Yields the results of the repetitions."""
    bench = Bench(task)
    actor = random_actor(bench.evaluator.env)
    for seed in task.seeds:
        yield bench.result("random", seed, actor)


if __name__ == "__main__":
    sys.exit(main(Task, run, __doc__))
