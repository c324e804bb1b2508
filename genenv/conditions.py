"""What a generator's network is given for a context, and what for none: the two halves of classifier-free guidance."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from genenv.protocols import Context


class Condition(Protocol):
    """Turns contexts (N,) into what a network takes, rows (N, ...)."""

    @property
    def num_contexts(self) -> int:
        """How many contexts there are."""
        ...

    def given(self, context: Context) -> Tensor:
        """Returns the rows (N, ...) of contexts."""
        ...

    def null(self, number: int, device: torch.device) -> Tensor:
        """Returns as many rows (number, ...) without a context."""
        ...


class Labels:
    """Class labels; the label after the last is that of no class (Ho and Salimans 2022).

    Args:
        num_contexts: classes C; the null label is C.
    """

    def __init__(self, num_contexts: int):
        self.num_contexts = num_contexts

    def given(self, context: Context) -> Tensor:
        """Returns the labels (N,) as they are."""
        return context

    def null(self, number: int, device: torch.device) -> Tensor:
        """Returns the null label, (number,) int64."""
        return torch.full((number,), self.num_contexts, device=device)


class Embeddings:
    """Embedded prompts, such as a text encoder's states.

    Args:
        prompts: (P, ...), one for each context.
        empty: (...), of the empty prompt.
    """

    def __init__(self, prompts: Tensor, empty: Tensor):
        if prompts.shape[1:] != empty.shape:
            raise ValueError(
                "prompts (P, ...) and empty (...) must be of one shape, "
                f"got {tuple(prompts.shape)} and {tuple(empty.shape)}"
            )
        self.prompts, self.empty, self.num_contexts = prompts, empty, len(prompts)

    def given(self, context: Context) -> Tensor:
        """Returns the prompts (N, ...)."""
        return self.prompts.to(context.device)[context]

    def null(self, number: int, device: torch.device) -> Tensor:
        """Returns the empty prompt, (number, ...)."""
        return self.empty.to(device).expand(number, *self.empty.shape)


def both(condition: Condition, context: Context) -> Tensor:
    """Returns the rows (2N, ...) of a guided call: those of the contexts, then as many without."""
    return torch.cat([condition.given(context), condition.null(len(context), context.device)])
