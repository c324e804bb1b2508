"""What each image is asked to show."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from numbers import Integral

import torch

from genenv.protocols import Context
from genenv.rng import BatchRng

CONTEXT_DRAW = 1
"""The `purpose` under which contexts draw."""


@dataclasses.dataclass(frozen=True)
class ClassLabels:
    """Chooses the class labels of an episode.

    Attributes:
        num_classes: labels are 0 ... num_classes - 1.
        plan: "uniform" draws each label from the image's own stream. "cycle" gives seed plus episode modulo the
            number of classes, so that consecutive seeds are balanced. "grouped:G" draws one label for every G
            neighbouring images, for group-relative methods. A list of labels is dealt out by seed plus episode.
    """

    num_classes: int
    plan: str | Sequence[int] = "uniform"

    def __post_init__(self):
        if isinstance(self.plan, str):
            kind, _, size = self.plan.partition(":")
            grouped = kind == "grouped" and size.isdecimal() and int(size) > 0
            known = grouped or self.plan in ("uniform", "cycle")
        else:
            known = isinstance(self.plan, Sequence)
        if not known:
            raise ValueError(
                f"contexts must be 'uniform', 'cycle', 'grouped:G' or a list of labels, got {self.plan!r}"
            )
        if not isinstance(self.plan, str):
            self.check(self.plan)

    def check(self, labels: Sequence[int]) -> None:
        """Raises ValueError unless there are labels and all of them exist."""
        if len(labels) == 0:
            raise ValueError("contexts must name at least one label, got an empty list")
        for label in labels:
            if not isinstance(label, Integral) or not 0 <= int(label) < self.num_classes:
                raise ValueError(f"context must be a label in 0..{self.num_classes - 1}, got {label!r}")

    def draw(self, rng: BatchRng) -> Context:
        """Returns the labels (N,) int64 of an episode."""
        if not isinstance(self.plan, str):
            labels = torch.as_tensor(list(self.plan), device=rng.seeds.device)
            return labels[(rng.seeds + rng.episode) % len(labels)]
        if self.plan == "cycle":
            return (rng.seeds + rng.episode) % self.num_classes
        labels = (rng.uniform(1, purpose=CONTEXT_DRAW)[:, 0] * self.num_classes).long()
        if self.plan == "uniform":
            return labels
        group = int(self.plan.removeprefix("grouped:"))
        if len(labels) % group:
            raise ValueError(f"num_envs must be a multiple of the group size {group}, got {len(labels)}")
        return labels[::group].repeat_interleave(group)
