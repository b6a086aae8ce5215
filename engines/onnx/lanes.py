"""Keys and values of all slots of a stage in one array, a lane each: neighbours are one batch. No arithmetic."""

from __future__ import annotations

from weakref import ref

import numpy as np

from engines.engine import FloatArray

FIRST_CAPACITY = 256
"""Positions in each lane at first; lanes and capacity double when they are full."""


class Lane:
    """One slot's place in the array; it is free again when nobody holds this any more."""

    __slots__ = ("__weakref__", "index")

    def __init__(self, index: int) -> None:
        self.index = index


class Lanes:
    """`memory` is (layers, 2, lanes, kv_heads, capacity, head_dim) float32, a new array after it has grown."""

    def __init__(self, n_layers: int, kv_heads: int, head_dim: int) -> None:
        self._sizes = n_layers, kv_heads, head_dim
        self._holders: list[ref[Lane]] = []
        self.memory = self._empty(1, FIRST_CAPACITY)

    @property
    def capacity(self) -> int:
        """Positions that fit in each lane."""
        return int(self.memory.shape[4])

    def take(self) -> Lane:
        """The first free lane. When none was held, the array is small again."""
        held = [holder() is not None for holder in self._holders]
        if not any(held):
            self._holders, held = [], []
            self.memory = self._empty(1, FIRST_CAPACITY)
        index = held.index(False) if False in held else len(held)
        if index == self.memory.shape[2]:
            self._grow(2 * index, self.capacity)
        lane = Lane(index)
        self._holders[index : index + 1] = [ref(lane)]
        return lane

    def reserve(self, positions: int) -> None:
        """Make room for `positions` in every lane; what is stored stays."""
        capacity = self.capacity
        while capacity < positions:
            capacity *= 2
        if capacity > self.capacity:
            self._grow(self.memory.shape[2], capacity)

    def _grow(self, lanes: int, capacity: int) -> None:
        grown = self._empty(lanes, capacity)
        _, _, held, _, length, _ = self.memory.shape
        grown[:, :, :held, :, :length] = self.memory
        self.memory = grown

    def _empty(self, lanes: int, capacity: int) -> FloatArray:
        """Memory that costs nothing before it is written to, as far as the system allows."""
        n_layers, kv_heads, head_dim = self._sizes
        return np.empty((n_layers, 2, lanes, kv_heads, capacity, head_dim), np.float32)
