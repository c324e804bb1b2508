"""Held-out evaluation of a policy: fixed seeds, balanced labels, a judge that no reward uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

import genenv
from genenv.metrics.judge import Judge
from genenv.protocols import Actor
from genenv.rollout import Episode, generate

HELD_OUT_SEED = 10**12
"""Image i of an evaluation has the seed HELD_OUT_SEED + i; training stays below."""


def held_out_seed(repetition: int, num_images: int) -> int:
    """Returns the first held-out seed of a repetition; repetitions of as many images share none."""
    return HELD_OUT_SEED + repetition * num_images


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a policy's images are worth.

    Attributes:
        metrics: fid, kid, precision, recall, density, coverage, accuracy.
        episode: the images and how they were made, without observations.
    """

    metrics: dict[str, float]
    episode: Episode


class Evaluator:
    """Plays policies on held-out seeds and judges the images; keeps its environment and judge between calls.

    Args:
        env_id: a registered id, with or without the prefix "genenv:".
        env_kwargs: what the policy was trained with; contexts, reward and autoreset are set here.
        num_images: images for each evaluation.
        batch_size: images at once.

    Raises:
        ValueError: if there is no such id.
    """

    def __init__(
        self,
        env_id: str,
        env_kwargs: Mapping[str, Any] | None = None,
        num_images: int = 2000,
        batch_size: int = 250,
    ):
        name = env_id.removeprefix("genenv:")
        if name not in genenv.IDS:
            raise ValueError(f"env_id must be one of {', '.join(genenv.IDS)}, got {env_id!r}")
        kwargs = dict(genenv.IDS[name]) | dict(env_kwargs or {})
        kwargs |= {"contexts": "cycle", "reward": "none", "autoreset_mode": "Disabled", "output": "torch"}
        self.num_images = num_images
        self.backbone: str = kwargs["backbone"]
        self.judge = Judge(self.backbone)  # first: released generators have none, and are slow to load
        self.env = gym.make_vec(env_id, num_envs=min(batch_size, num_images), **kwargs)

    def __call__(self, actor: Actor, seed: int = HELD_OUT_SEED) -> Evaluation:
        """Returns the evaluation of an actor on the seeds seed ... seed + num_images - 1."""
        episode = generate(self.env, actor, self.num_images, seed)
        return Evaluation(self.judge.measure(episode.images, episode.context), episode)


def evaluate(
    env_id: str,
    actor: Actor,
    env_kwargs: Mapping[str, Any] | None = None,
    num_images: int = 2000,
    seed: int = HELD_OUT_SEED,
) -> Evaluation:
    """Returns the held-out evaluation of an actor: the one-call form of `Evaluator`."""
    return Evaluator(env_id, env_kwargs, num_images)(actor, seed)
