"""The keys and values of all slots of a stage in one array, so that slots side by side are one batch. No arithmetic."""

from __future__ import annotations

from engines.engine import FloatArray, SavedKV
from engines.kv_memory import KVMemory
from engines.settings import MAX_SLOTS


class KVPool:
    """An array (layers, 2, MAX_SLOTS, kv_heads, capacity, head_dim) float32 with an entry for each slot in use.

    Only what was written takes memory.
    """

    def __init__(self, n_layers: int, kv_heads: int, capacity: int, head_dim: int) -> None:
        self._memory = KVMemory(n_layers, 2, MAX_SLOTS, kv_heads, capacity, head_dim)
        self._free = set(range(MAX_SLOTS))

    @property
    def array(self) -> FloatArray:
        """The whole pool. It stays at the same address."""
        return self._memory.array

    def allocate(self) -> int:
        """Take the first free entry, so that those in use stay close together."""
        entry = min(self._free)
        self._free.remove(entry)
        return entry

    def free(self, entry: int) -> None:
        """Free the entry, and return its memory to the system."""
        for layer in self.array[:, :, entry]:
            for part in layer:
                self._memory.discard(part)
        self._free.add(entry)

    def save(self, entry: int, start: int, end: int) -> SavedKV:
        """Copy some of an entry's positions."""
        copy = self.array[:, :, entry, :, start:end].copy()
        return SavedKV(start, end, copy.nbytes, copy)

    def restore(self, entry: int, saved: SavedKV) -> None:
        """Write a copy to its positions."""
        self.array[:, :, entry, :, saved.start : saved.end] = saved.content
