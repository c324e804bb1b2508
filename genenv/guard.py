"""What a rising reward did to quality and diversity, told in one sentence."""

from __future__ import annotations

import copy

import torch

from genenv.evaluation import Evaluation
from genenv.rewards.mixture import Mixture

SHOWN = (("fid", "held-out FID", ".2f"), ("recall", "recall", ".3f"), ("accuracy", "label accuracy", ".1%"))
"""Metric, what it is called, and its format."""
FALLEN = (("fid", "FID rose", 1), ("recall", "recall fell", -1))
"""Metric, what to say where it got worse, and the sign of that."""


def verdict(reward: Mixture, before: Evaluation, after: Evaluation) -> str:
    """Returns reward and held-out metrics before and after training, with a warning where they part.

    Both sets of images are judged as one batch, since a reward such as leave-one-out FID compares the images of a
    batch with each other. What the reward remembers is left as it was.
    """
    images = torch.cat([before.episode.images, after.episode.images])
    state = copy.deepcopy(reward.state_dict())
    reward.reset()
    try:
        judged = reward(images, torch.cat([before.episode.context, after.episode.context]))
    finally:
        reward.load_state_dict(state)
    old, new = (
        part.mean().item() for part in judged.split([len(before.episode.images), len(after.episode.images)])
    )
    change = f"{old:.3f} -> {new:.3f}"
    if old > 0:  # no percentage of a reward that may be 0 or less
        change = f"{new / old - 1:+.1%} ({change})"
    shown = [
        f"{title} {before.metrics[name]:{form}} -> {after.metrics[name]:{form}}"
        for name, title, form in SHOWN
        if name in before.metrics  # released generators have no accuracy, some references no recall
    ]
    sentence = f"reward {change}, {', '.join(shown)}"
    worse = [
        said
        for name, said, sign in FALLEN
        if name in before.metrics and sign * (after.metrics[name] - before.metrics[name]) > 0
    ]
    if new > old and worse:
        sentence += f". Warning: {' and '.join(worse)} while the reward rose"
    return sentence
