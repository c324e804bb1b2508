"""The keys and values of a transformer's past tokens, so that a token is read once."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Preallocated keys and values of every layer, (layers, rows, heads, capacity, head_dim) each.

    Rows are images; with classifier-free guidance the conditional half comes first. A state that keeps a cache
    together with its own length stays valid when the cache grows, and branches where it is advanced a second time:
    see `branch`.
    """

    def __init__(
        self,
        num_layers: int,
        num_rows: int,
        num_heads: int,
        capacity: int,
        head_dim: int,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
    ):
        shape = (num_layers, num_rows, num_heads, capacity, head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def branch(self, length: int) -> KVCache:
        """Returns a cache that may be written from position `length` on: this one, or a copy if it went on already."""
        if self.length <= length:
            return self
        copy = object.__new__(KVCache)
        copy.keys, copy.values, copy.length = self.keys.clone(), self.values.clone(), length
        return copy

    def write(
        self, layer: int, rows: slice, start: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Stores keys and values (R, heads, M, head_dim) of positions start ... start + M - 1.

        Returns:
            The rows' keys and values of all positions up to the last one written, (R, heads, start + M, head_dim).
        """
        end = start + keys.shape[2]
        self.keys[layer, rows, :, start:end] = keys
        self.values[layer, rows, :, start:end] = values
        self.length = max(self.length, end)
        return self.keys[layer, rows, :, :end], self.values[layer, rows, :, :end]
