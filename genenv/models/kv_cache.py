"""The keys and values of a transformer's past tokens, so that a token is read once."""

from __future__ import annotations

from collections.abc import Sequence

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
        return KVCache._of(self.keys.clone(), self.values.clone(), length)

    @staticmethod
    def choose(caches: Sequence[KVCache], index: Tensor) -> KVCache:
        """Returns the cache whose rows of image i are those of caches[index[i]], of caches of one shape.

        Args:
            caches: with one or more rows for each of N images, as under guidance: rows i, N + i ...
            index: (N,) int64 into `caches`.
        """
        rows_each = caches[0].keys.shape[1] // len(index)
        source, row = index.repeat(rows_each), torch.arange(rows_each * len(index), device=index.device)
        keys, values = (
            torch.stack([getattr(cache, name) for cache in caches])[source, :, row].transpose(0, 1)
            for name in ("keys", "values")
        )
        return KVCache._of(keys.contiguous(), values.contiguous(), max(cache.length for cache in caches))

    @staticmethod
    def _of(keys: Tensor, values: Tensor, length: int) -> KVCache:
        cache = object.__new__(KVCache)
        cache.keys, cache.values, cache.length = keys, values, length
        return cache

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
