"""Stable-Baselines3's PPO at its default hyper-parameters.

SB3 feeds an integer Box to its policy as plain numbers, so that token 40 lies between 39 and 41. `--one-hot-tokens`
shows the policy which token it is instead; all else stays at the defaults. Policies are evaluated by their mean action,
those whose actions are tokens by drawing them.

python -m baselines.sb3 --env-id AdaGen/MaskGIT-v0 --minutes 3 --out sb3.json
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from baselines.common import Bench, Result, Task, main
from genenv.checkpoints import replacing
from genenv.integrations.sb3 import GenVecEnv
from genenv.progress import Report, ignore, progress
from genenv.protocols import Actor, Observation
from genenv.ranges import AT_LEAST_1, NOT_NEGATIVE
from genenv.rollout import token_draws
from genenv.vector_env import to_numpy, unwrapped

ALGORITHMS = {"ppo": "stable_baselines3:PPO", "trpo": "sb3_contrib:TRPO"}
DEFAULT_ROLLOUT = 2048
"""Transitions between two updates at SB3's defaults."""


@dataclass(frozen=True)
class Config(Task):
    """How long to train, and on what."""

    algo: Literal["ppo", "trpo"] = "ppo"
    """Algorithm; TRPO is sb3-contrib's."""
    minutes: Annotated[float, NOT_NEGATIVE] = 3.0
    """Training time of a repetition, without the evaluations."""
    num_envs: Annotated[int, AT_LEAST_1] = 256
    """Images generated at once: what a reward that compares images sees together."""
    one_hot_tokens: bool = False
    """Encode token ids as one-hot vectors instead of SB3's plain numbers."""


class OneHotExtractor(BaseFeaturesExtractor):
    """Concatenates an observation with every integer Box one-hot; SB3 has already done so for Discrete entries.

    Args:
        observation_space: a Dict of Box and Discrete spaces.
    """

    def __init__(self, observation_space: spaces.Dict):
        self.classes = {
            name: int(space.high.max()) + 1
            for name, space in observation_space.items()
            if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.integer)
        }
        sizes = [
            spaces.flatdim(space) * self.classes.get(name, 1) for name, space in observation_space.items()
        ]
        super().__init__(observation_space, sum(sizes))

    def forward(self, observation: Observation) -> Tensor:
        """Returns features (N, D)."""
        return torch.cat(
            [
                F.one_hot(value.long(), self.classes[name]).float().flatten(1)
                if name in self.classes
                else value.flatten(1)
                for name, value in observation.items()
            ],
            dim=1,
        )


class TimeBudget(BaseCallback):
    """Ends the training when its time is over.

    Args:
        seconds: wall clock from the first rollout on.
        report: told the seconds spent, of how many.
    """

    def __init__(self, seconds: float, report: Report = ignore):
        super().__init__()
        self.seconds, self.report = seconds, report

    def _on_training_start(self) -> None:
        self.start = time.monotonic()

    def _on_step(self) -> bool:
        spent = time.monotonic() - self.start
        self.report(round(min(spent, self.seconds)), round(self.seconds), f"{self.num_timesteps:,} steps")
        return spent < self.seconds


def rollout_steps(num_envs: int, horizon: int) -> int:
    """Returns the steps of a rollout: whole episodes, as near to SB3's 2048 transitions as they come."""
    return horizon * max(1, round(DEFAULT_ROLLOUT / (num_envs * horizon)))


def make_model(config: Config, seed: int) -> OnPolicyAlgorithm:
    """Returns an untrained model on its own environment, all else at SB3's defaults."""
    env = gym.make_vec(config.env_id, num_envs=config.num_envs, **config.env_kwargs)
    module, _, name = ALGORITHMS[config.algo].partition(":")
    algorithm = getattr(importlib.import_module(module), name)
    n_steps = rollout_steps(config.num_envs, unwrapped(env).sampler.horizon)
    policy_kwargs = {"features_extractor_class": OneHotExtractor} if config.one_hot_tokens else None
    return algorithm(
        "MultiInputPolicy", GenVecEnv(env), n_steps=n_steps, seed=seed % 2**32, policy_kwargs=policy_kwargs
    )


def actor_from(model: OnPolicyAlgorithm, env: VectorEnv) -> Actor:
    """Returns a model's policy in an environment: its mean action, clipped to the box, or a token that it draws.

    The likeliest tokens would make the same image of a class every time, since all of its chance lies in them.
    """
    draw = token_draws(env)

    def act(observation: Observation) -> Tensor:
        device = next(iter(observation.values())).device
        if isinstance(model.action_space, spaces.Discrete):
            tensors, _ = model.policy.obs_to_tensor(to_numpy(observation))
            distribution: Any = model.policy.get_distribution(tensors).distribution
            return draw(distribution.logits.to(device))
        action, _ = model.predict(to_numpy(observation), deterministic=True)
        return torch.from_numpy(action).to(device)

    return act


def save(model: OnPolicyAlgorithm, path: Path) -> None:
    """Writes a model under a temporary name and renames it; see `genenv.checkpoints.replacing`."""
    with replacing(path) as partial, partial.open("wb") as file:
        model.save(file)


def run(config: Config) -> Iterator[Result]:
    """Yields the results of every repetition, before and after training.

    The models are saved beside the results, as `<out>-<seed>.zip`.
    """
    bench = Bench(config)
    name = f"{config.algo}, one-hot" if config.one_hot_tokens else config.algo
    for seed in config.seeds:
        model = make_model(config, seed)
        actor = actor_from(model, bench.evaluator.env)
        yield bench.result(f"{name}, untrained", seed, actor)
        started = time.perf_counter()
        with progress(f"{name}, seed {seed}, seconds") as report:
            model.learn(2**62, callback=TimeBudget(60 * config.minutes, report))
        seconds = time.perf_counter() - started
        if config.out is not None:
            save(model, config.out.with_name(f"{config.out.stem}-{seed}.zip"))
        images = model.num_timesteps // unwrapped(bench.evaluator.env).sampler.horizon
        yield bench.result(name, seed, actor, images, seconds)


if __name__ == "__main__":
    sys.exit(main(Config, run, __doc__))
