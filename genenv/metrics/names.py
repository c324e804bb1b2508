"""What each metric is called, which way it gets better, and how it is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Attributes:
        title: as people write it.
        better: 1 where more is better, -1 where less is, 0 where neither.
        format: of its value.
    """

    title: str
    better: int
    format: str


METRICS: dict[str, Metric] = {
    "fid": Metric("FID", -1, ".2f"),
    "kid": Metric("KID", -1, ".4f"),
    "precision": Metric("precision", 1, ".3f"),
    "recall": Metric("recall", 1, ".3f"),
    "density": Metric("density", 1, ".3f"),
    "coverage": Metric("coverage", 1, ".3f"),
    "inception_score": Metric("Inception Score", 1, ".2f"),
    "accuracy": Metric("accuracy", 1, ".1%"),
    "clip_score": Metric("CLIP score", 1, ".3f"),
    "w2": Metric("W2", -1, ".4f"),
    "reward": Metric("reward", 1, ".3f"),
    "clip": Metric("CLIP", 1, ".3f"),
    "hpsv2": Metric("HPSv2", 1, ".3f"),
    "nfe": Metric("network evaluations", -1, ".1f"),
    "images_per_second": Metric("images/s", 1, ",.0f"),
}
"""Key -> metric, in the order in which they are listed: `Measurement.metrics`, the CLIP score, W2 of points, rewards,
and what an image costs."""

SUMMARY = ("fid", "precision", "recall", "coverage", "accuracy")
"""Those of a short table: quality, fidelity and diversity, and whether the label is met."""
CARD = ("fid", "kid", "precision", "recall", "density", "coverage", "accuracy")
"""Those of a model card: all that compare images with the real ones, and accuracy."""
SHARES = ("precision", "recall", "coverage", "accuracy")
"""Those that are shares of images."""


def in_a_line(metrics: Mapping[str, float]) -> str:
    """Returns the metrics of a row as text, "fid 0.858, recall 0.740": those of a short table, or all without these."""
    names = [name for name in SUMMARY if name in metrics] or list(metrics)
    return ", ".join(f"{name} {metrics[name]:.3f}" for name in names)
