"""The keys and values of one slot on one stage, with room for the whole context."""

from __future__ import annotations

from engines.engine import FloatArray, SavedKV
from engines.kv_memory import KVMemory


class KVCache:
    """Keys and values of `n_layers` layers, (layers, 2, kv_heads, context, head_dim) float32."""

    def __init__(self, n_layers: int, kv_heads: int, context: int, head_dim: int) -> None:
        self._array = KVMemory(n_layers, 2, kv_heads, context, head_dim).array

    def store(self, layer: int, position: int, keys: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Write (rows, kv_heads, head_dim) from `position` on.

        Returns views of all that the layer holds, (kv_heads, end, head_dim).
        """
        end = position + len(keys)
        held = self._array[layer, :, :, :end]
        held[0, :, position:] = keys.swapaxes(0, 1)
        held[1, :, position:] = values.swapaxes(0, 1)
        return held[0], held[1]

    def save(self, start: int, end: int) -> SavedKV:
        """Copy these positions of all layers."""
        copy = self._array[:, :, :, start:end].copy()
        return SavedKV(start, end, copy.nbytes, copy)

    def restore(self, saved: SavedKV) -> None:
        """Write a copy to its positions."""
        self._array[:, :, :, saved.start : saved.end] = saved.content
