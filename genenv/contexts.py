"""What each image is asked to show."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from genenv.protocols import Context
from genenv.rng import MAX_SEED, BatchRng, Purpose


@dataclasses.dataclass(frozen=True)
class Contexts:
    """Chooses the context of every image of an episode: the number of a class, or of a prompt.

    A context depends on the image's own seed and episode, never on the batch.

    Attributes:
        names: what there is to show, such as class names; contexts are 0 ... len(names) - 1.
        plan: "uniform" draws each context from the image's own stream. "cycle" gives seed plus episode modulo their
            number, so that consecutive seeds are balanced. "grouped:G" draws one context for all images whose seed
            divided by G is the same whole number, for group-relative methods. A list of contexts is dealt out by seed
            plus episode.
    """

    names: Sequence[str]
    plan: str | Sequence[int] = "uniform"

    def __post_init__(self):
        if isinstance(self.plan, str):
            kind, _, size = self.plan.partition(":")
            whole = size.isdecimal() and len(size) <= len(str(MAX_SEED))
            grouped = kind == "grouped" and whole and 0 < int(size) <= MAX_SEED
            known = grouped or self.plan in ("uniform", "cycle")
        else:
            known = isinstance(self.plan, Sequence)
        if not known:
            raise ValueError(
                f"contexts must be 'uniform', 'cycle', 'grouped:G' (G in 1..2**63-1) or a list of labels, "
                f"got {self.plan!r}"
            )
        if not isinstance(self.plan, str):
            self.check(self.plan)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def group_size(self) -> int | None:
        """G of a "grouped:G" plan, None of another."""
        grouped = isinstance(self.plan, str) and self.plan.startswith("grouped:")
        return int(str(self.plan).removeprefix("grouped:")) if grouped else None

    def check(self, contexts: Sequence[int]) -> None:
        """Raises ValueError unless there are contexts and all of them exist."""
        if len(contexts) == 0:
            raise ValueError("contexts must name at least one label, got an empty list")
        for context in contexts:
            if not isinstance(context, Integral) or isinstance(context, bool) or not 0 <= context < len(self):  # type: ignore[operator]
                raise ValueError(f"context must be a label in 0..{len(self) - 1}, got {context!r}")

    def draw(self, rng: BatchRng) -> Context:
        """Returns the contexts (N,) int64 of an episode."""
        if self.plan == "cycle":
            return (rng.seeds + rng.episode) % len(self)
        if not isinstance(self.plan, str):
            given = torch.as_tensor(list(self.plan), device=rng.seeds.device)
            return given[(rng.seeds + rng.episode) % len(given)]
        if self.group_size is not None:
            rng = dataclasses.replace(rng, seeds=rng.seeds // self.group_size)
        return (rng.uniform(1, purpose=Purpose.CONTEXT)[:, 0] * len(self)).long()

    def group(self, rng: BatchRng, context: Context) -> Tensor:
        """Returns the number of each image's group (N,) int64: those that a group-relative reward compares.

        Of a "grouped:G" plan it is the seed divided by G, so that two groups of one context stay two; of another plan
        images of one context are a group.
        """
        return context if self.group_size is None else rng.seeds // self.group_size
