"""What a rising reward did to quality and diversity, told in one sentence."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from genenv.evaluation import Evaluation
from genenv.metrics.intervals import student
from genenv.metrics.names import METRICS, SHARES
from genenv.rewards.mixture import Mixture

SHOWN = {"fid": "held-out FID", "recall": "recall", "accuracy": "label accuracy"}
"""Metric, and what the sentence calls it."""
FALLEN = {"fid": "FID rose", "recall": "recall fell"}
"""Metric, and what to say where it got worse."""
BLOCK, BLOCKS = 64, 20
"""Rewards are compared by the means of blocks of so many consecutive images; of at least so many blocks."""


def verdict(reward: Mixture | str, before: Evaluation, after: Evaluation) -> str:
    """Returns reward and held-out metrics before and after training, with a warning where they part.

    The warning is for changes beyond noise: a reward that rose by more than the 95 % interval of its change, and a
    metric that got worse by more than its own (see `tolerance`).

    Both sets of images are judged as one batch, since a reward such as leave-one-out FID compares the images of a
    batch with each other, and a standardised one says nothing but how they compare. What the reward remembers is left
    as it was.

    Args:
        reward: what the policy was paid, or the name of the running cost that it was charged.
        before: of the policy before training.
        after: of the policy after it, on the same seeds.

    Raises:
        ValueError: if the seeds differ.
    """
    if before.seeds != after.seeds:
        raise ValueError(
            f"before and after must be evaluations of the same seeds, got {before.seeds} and {after.seeds}"
        )
    old, new = _judged(reward, before, after)
    change = f"{_plain(old.mean())} -> {_plain(new.mean())}"
    noise = change_noise(old, new)
    if old.mean() > noise:  # no percentage of a reward that may be 0 or less
        change = f"{(new.mean() / old.mean() - 1).item():+.1%} ({change})"
    shown = [
        f"{title} {before.metrics[name]:{METRICS[name].format}} -> {after.metrics[name]:{METRICS[name].format}}"
        for name, title in SHOWN.items()
        if name in before.metrics  # released generators have no accuracy, some references no recall
    ]
    sentence = f"reward {change}, {', '.join(shown)}"
    worse = [
        said
        for name, said in FALLEN.items()
        if name in before.metrics
        and METRICS[name].better * (before.metrics[name] - after.metrics[name])
        > tolerance(name, before, after)
    ]
    if (new.mean() - old.mean()).item() > noise and worse:
        sentence += f". Warning: {' and '.join(worse)} while the reward rose"
    return sentence


def change_noise(old: Tensor, new: Tensor) -> float:
    """Returns the half-width of the 95 % interval of the mean change of paired rewards (N,), inf for a single pair.

    Student's, over the means of blocks of consecutive images rather than over images: images that are judged as a
    group, such as those of the FID reward, are paid alike and count as one.
    """
    change = (new - old).double()
    if len(change) < 2:
        return math.inf
    blocks = change.tensor_split(min(len(change), max(BLOCKS, len(change) // BLOCK)))
    low, high = student([block.mean().item() for block in blocks])
    return (high - low) / 2


def tolerance(name: str, before: Evaluation, after: Evaluation) -> float:
    """Returns the half-width of the 95 % interval of a metric's change between evaluations.

    Made of the evaluations' own intervals. A share of images without one (recall, whose images cannot be resampled) has
    that of a binomial; over sets of seeds the digits' recall varies 1.1 to 1.4 times as much. Any other metric without
    one has 0.
    """
    return math.hypot(_half_width(name, before), _half_width(name, after))


def _half_width(name: str, evaluation: Evaluation) -> float:
    if name in evaluation.intervals:
        low, high = evaluation.intervals[name]
        return (high - low) / 2
    if name in SHARES:
        share = evaluation.metrics[name]
        return 1.96 * math.sqrt(share * (1 - share) / (evaluation.num_images * evaluation.repetitions))
    return 0.0


def _judged(reward: Mixture | str, before: Evaluation, after: Evaluation) -> tuple[Tensor, Tensor]:
    """Returns the reward of each image before and after; of a running cost, minus its sum."""
    if isinstance(reward, str):
        old, new = (-evaluation.episode.diagnostics[reward].sum(0).cpu() for evaluation in (before, after))
        return old, new
    images = torch.cat([before.episode.images, after.episode.images])
    state = copy.deepcopy(reward.state_dict())
    reward.reset()
    try:
        context, group = (
            torch.cat([getattr(e.episode, name) for e in (before, after)]) for name in ("context", "group")
        )
        judged, _ = reward.judge(images, context, group)
    finally:
        reward.load_state_dict(state)
    old, new = judged.cpu().chunk(2)
    return old, new


def _plain(value: Tensor) -> str:
    """Returns a number as text, without the sign of a zero."""
    return f"{round(value.item(), 3) + 0.0:.3f}"
