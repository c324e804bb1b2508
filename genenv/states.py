"""Choosing among states of a sampler, image by image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genenv.models.kv_cache import KVCache


def choose(states: Sequence[Any], index: Tensor) -> Any:
    """Returns the state whose image i is that of states[index[i]].

    Args:
        states: of the same sampler and decision, N images each; nested dataclasses of tensors and key-value caches.
        index: (N,) int64 into `states`.

    Raises:
        ValueError: if the states differ in anything but their images, such as the decisions taken.
    """
    first = states[0]
    if isinstance(first, Tensor):
        return torch.stack(list(states))[index, torch.arange(len(index), device=index.device)]
    if isinstance(first, KVCache):
        return KVCache.choose(states, index)
    if dataclasses.is_dataclass(first):
        fields = {f.name: [getattr(s, f.name) for s in states] for f in dataclasses.fields(first)}
        return type(first)(**{name: choose(values, index) for name, values in fields.items()})
    if any(other != first for other in states):
        raise ValueError(
            f"states must be of one decision, got ones that differ in {first!r} and {states[-1]!r}"
        )
    return first
