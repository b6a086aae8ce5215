"""The keys and values of one slot on one stage, in arrays that double when full. No arithmetic here."""

from __future__ import annotations

import numpy as np

from engines.engine import FloatArray

FIRST_CAPACITY = 64


class KVCache:
    """Keys and values of `n_layers` layers, each (kv_heads, capacity, head_dim) float32."""

    def __init__(self, n_layers: int, kv_heads: int, head_dim: int) -> None:
        self._keys = np.empty((n_layers, kv_heads, FIRST_CAPACITY, head_dim), np.float32)
        self._values = np.empty_like(self._keys)

    @property
    def capacity(self) -> int:
        """Positions that fit before the arrays must grow."""
        return int(self._keys.shape[2])

    def reserve(self, positions: int) -> None:
        """Make room for `positions` in all; what is stored stays."""
        capacity = self.capacity
        while capacity < positions:
            capacity *= 2
        if capacity > self.capacity:
            self._keys = _grown(self._keys, capacity)
            self._values = _grown(self._values, capacity)

    def store(self, layer: int, position: int, keys: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Write (rows, kv_heads, head_dim) from `position` on; answer views (kv_heads, length, head_dim)."""
        end = position + len(keys)
        self._keys[layer, :, position:end] = keys.swapaxes(0, 1)
        self._values[layer, :, position:end] = values.swapaxes(0, 1)
        return self._keys[layer, :, :end], self._values[layer, :, :end]


def _grown(array: FloatArray, capacity: int) -> FloatArray:
    n_layers, kv_heads, held, head_dim = array.shape
    grown = np.empty((n_layers, kv_heads, capacity, head_dim), np.float32)
    grown[:, :, :held] = array
    return grown
