"""The best of several random schedules for each image: how much a schedule of its own could bring an image at all.

python -m baselines.oracle --env-id AdaGen/MaskGIT-v0 --candidates 8 --out oracle.json

No policy can know which noise an image will meet, so that this is no baseline to beat but a bound to read gains by. A
choice image by image sees no diversity: a judge of single images may choose the most typical one every time.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

import gymnasium as gym
import torch
from torch import Tensor

from baselines.common import Bench, Result, Task, main
from genenv.evaluation import LABEL_PLAN
from genenv.protocols import Observation, Reward
from genenv.ranges import ABOVE_ZERO, AT_LEAST_2
from genenv.rewards import make_reward
from genenv.rewards.features import reward_features
from genenv.rng import Stream
from genenv.rollout import run_episode, schedule_actions
from genenv.tiers import tier_of
from genenv.vector_env import unwrapped


@dataclasses.dataclass(frozen=True)
class Config(Task):
    """What an image may choose from, and by what."""

    candidates: Annotated[int, AT_LEAST_2] = 8
    """Schedules of each image (M): the hand-crafted one, and M - 1 random ones around it."""
    std: Annotated[float, ABOVE_ZERO] = 0.3
    """Standard deviation of the random ones, in unit actions, independently for each decision and parameter."""
    by: tuple[str, ...] = ("adversarial", "nearest-real")
    """What chooses: rewards of single images by their names, and "nearest-real", the distance to the nearest real image
    of the class on features of the rewards' network."""


class NearestReal:
    """Pays minus the distance of an image to the nearest real one of its class, on features that rewards use.

    Args:
        backbone: whose tier has the real images.
    """

    def __init__(self, backbone: str):
        self.network, _, covariance = reward_features(backbone, "cpu")
        self.std = covariance.diagonal().sqrt()
        images, self.labels = tier_of(backbone).need("real_images")()
        self.real = self._features(images)

    def _features(self, images: Tensor) -> Tensor:
        return self.network.features(images.cpu()) / self.std.float()

    def __call__(self, images: Tensor, context: Tensor) -> Tensor:
        """Returns (N,)."""
        distance = torch.cdist(self._features(images), self.real)
        other = context.cpu()[:, None] != self.labels
        return -distance.masked_fill(other, torch.inf).amin(1)


class Oracle:
    """Plays for each image the schedule that came out best among several that were tried on it.

    Args:
        bench: whose held-out images are made.
        config: how many are tried.
        seed: of the random schedules.
        score: (images, context) -> (N,); the largest is best.

    Attributes:
        images: that were generated to choose from.
    """

    def __init__(self, bench: Bench, config: Config, seed: int, score: Reward):
        evaluator = bench.evaluator
        self.env, self.config, self.score = evaluator.env, config, score
        kwargs: dict[str, Any] = bench.env_kwargs | {"contexts": LABEL_PLAN, "reward": "none"}
        kwargs |= {"autoreset_mode": "Disabled", "output": "torch"}
        self.trial = gym.make_vec(bench.env_id, num_envs=self.env.num_envs, **kwargs)
        self.generator = torch.Generator().manual_seed(seed)
        self.images, self.table = 0, torch.empty(0)

    def __call__(self, observation: Observation) -> Tensor:
        """Returns the chosen actions (N, A) of a decision; before the first one all candidates are tried."""
        inner = unwrapped(self.env)
        if inner.current_step == 0:
            self.table = self._choose(inner.rng.seeds.tolist())
        return self.table[inner.current_step]

    def _choose(self, seeds: list[int]) -> Tensor:
        """Returns the best actions (T, N, A) of the images with these seeds."""
        actions = schedule_actions(self.trial)
        shape = (actions.horizon, len(seeds), len(actions.params))
        best, chosen = torch.full((len(seeds),), -torch.inf), torch.zeros(shape)
        for candidate in range(self.config.candidates):
            table = self.config.std * torch.randn(shape, generator=self.generator) * (candidate > 0)
            step = iter(table.to(unwrapped(self.trial).device))
            episode = run_episode(self.trial, lambda _, s=step: next(s), seeds, Stream.HELD_OUT, False)
            value = self.score(episode.images, episode.context).cpu()
            better = value > best
            best = torch.where(better, value, best)
            chosen[:, better] = table[:, better]
            self.images += len(seeds)
        return chosen.to(unwrapped(self.env).device)


def run(config: Config) -> Iterator[Result]:
    """Yields the results of every repetition under every choice."""
    bench = Bench(config, dict(config.env_kwargs) | {"action_mode": "residual", "observe": ["step"]})
    backbone = bench.evaluator.backbone
    scores: dict[str, Reward] = {}
    for name in config.by:
        score = NearestReal(backbone) if name == "nearest-real" else make_reward(name, backbone, "cpu")
        if score is None:
            raise ValueError(f"by must hold rewards of single images and 'nearest-real', got {name!r}")
        scores[name] = score
    for seed in config.seeds:
        for name, score in scores.items():
            started = time.perf_counter()
            oracle = Oracle(bench, config, seed, score)
            result = bench.result(f"best of {config.candidates} by {name}", seed, oracle)
            seconds = round(time.perf_counter() - started, 1)
            yield dataclasses.replace(result, images=oracle.images, seconds=seconds)


if __name__ == "__main__":
    sys.exit(main(Config, run, __doc__))
