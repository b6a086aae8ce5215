"""Keys and values of all slots of a stage in one array, a lane each: neighbours are one batch. No arithmetic."""

from __future__ import annotations

from engines.engine import MAX_SLOTS, FloatArray, SavedKV
from engines.kv_memory import KVMemory


class KvPool:
    """`array` is (layers, 2, MAX_SLOTS, kv_heads, capacity, head_dim) float32, and is memory where it was written."""

    def __init__(self, n_layers: int, kv_heads: int, capacity: int, head_dim: int) -> None:
        self._memory = KVMemory(n_layers, 2, MAX_SLOTS, kv_heads, capacity, head_dim)
        self._free = set(range(MAX_SLOTS))

    @property
    def array(self) -> FloatArray:
        """Always the same memory."""
        return self._memory.array

    def take(self) -> int:
        """The first free lane, so that those in use stay close together."""
        lane = min(self._free)
        self._free.remove(lane)
        return lane

    def give_back(self, lane: int) -> None:
        """The lane is free again and its memory the system's."""
        for layer in self.array[:, :, lane]:
            for part in layer:
                self._memory.give_back(part)
        self._free.add(lane)

    def save(self, lane: int, start: int, end: int) -> SavedKV:
        """A copy of a lane's positions."""
        copy = self.array[:, :, lane, :, start:end].copy()
        return SavedKV(start, end, copy.nbytes, copy)

    def restore(self, lane: int, saved: SavedKV) -> None:
        """Write a copy to its place."""
        self.array[:, :, lane, :, saved.start : saved.end] = saved.content
