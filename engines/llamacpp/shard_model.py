"""Runs a shard in llama.cpp. Each slot's cache is a sequence of a context: one context for all slots, or one each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.shard import Shard
from engines.engine import Chunk, FloatArray, SavedKV
from engines.llamacpp.context import MAX_ROWS, Context, Rows
from engines.llamacpp.loaded_model import LoadedModel
from engines.settings import CUT, MAX_SLOTS
from models.weights.gguf.sizes import GgufSizes

GROWTH = 512
"""By how many positions a slot's own context grows; a multiple of 256, to which the library rounds."""


@dataclass(slots=True, eq=False)
class SlotCache:
    """The sequence of a context that holds a slot's keys and values, and the one that copies of some of its positions
    go through, since the library copies whole sequences.
    """

    context: Context
    sequence: int
    spare: int


class LlamaCppShardModel(ABC):
    """The `ShardModel` of this engine. A subclass defines which contexts hold the slots."""

    def __init__(self, sizes: GgufSizes, shard: Shard) -> None:
        self.sizes = sizes.of(shard)
        self.shard = shard
        self._window = sizes.window

    @abstractmethod
    def new_cache(self) -> SlotCache:
        """Return an empty sequence. Raises EngineError if the system grants no memory."""

    @abstractmethod
    def release(self, cache: SlotCache) -> None:
        """Free what a slot takes."""

    @abstractmethod
    def close(self) -> None:
        """Free the memory of all slots."""

    def truncate(self, cache: SlotCache, position: int) -> None:
        """Keep the first `position` positions."""
        cache.context.remove(cache.sequence, position)

    def save(self, cache: SlotCache, start: int, end: int) -> SavedKV:
        """Copy positions in the library's own form, which only the same shard can read.

        Of layers with a window, the library copies only what lies in the window of the position behind the copied ones.
        So the copy is one of several pieces, each shorter than the window.
        """
        step = max(self._window // 2, 1) if self._window else end - start
        pieces = tuple(_piece(cache, first, min(first + step, end)) for first in range(start, end, step))
        return SavedKV(start, end, sum(piece.nbytes for piece in pieces), pieces)

    def restore(self, cache: SlotCache, saved: SavedKV) -> None:
        """Append a copy."""
        for piece in saved.content:
            cache.context.set_state(cache.spare, piece)
            cache.context.share(cache.spare, cache.sequence)
            cache.context.remove(cache.spare)

    def forward(self, batch: Sequence[Chunk], caches: Sequence[SlotCache]) -> list[FloatArray]:
        """Compute all chunks' rows together, MAX_ROWS at a time. The output keeps the order of the rows."""
        rows = _rows(batch, [cache.sequence for cache in caches], self.shard.is_last)
        count, context = len(rows.positions), caches[0].context
        passes = [context.run(rows.part(start, start + MAX_ROWS)) for start in range(0, count, MAX_ROWS)]
        output = passes[0] if len(passes) == 1 else np.concatenate(passes)
        sizes = [chunk.logits if self.shard.is_last else chunk.rows for chunk in batch]
        return np.split(output, np.cumsum(sizes[:-1]))


class SharedContext(LlamaCppShardModel):
    """One context of `cells` positions for all slots."""

    def __init__(self, sizes: GgufSizes, shard: Shard, model: LoadedModel, cells: int) -> None:
        super().__init__(sizes, shard)
        self.context = Context(model, cells, MAX_SLOTS + 1)
        self._free = list(range(MAX_SLOTS))

    def new_cache(self) -> SlotCache:
        """Take a free sequence. A `SlotTable` has no more slots than there are."""
        return SlotCache(self.context, self._free.pop(), MAX_SLOTS)

    def release(self, cache: SlotCache) -> None:
        """Drop the sequence's positions, and free it for another slot."""
        self.context.remove(cache.sequence)
        self._free.append(cache.sequence)

    def close(self) -> None:
        """Free the context."""
        self.context.close()


class OwnContexts(LlamaCppShardModel):
    """Gives each slot a context of its own, in which its positions are all there is, in order.

    So attention sums them in one order, whatever other slots hold. A batch has rows of one slot, at most CUT.
    """

    def __init__(self, sizes: GgufSizes, shard: Shard, model: LoadedModel) -> None:
        super().__init__(sizes, shard)
        self._model = model
        self._caches: list[SlotCache] = []

    def new_cache(self) -> SlotCache:
        """Make a context of GROWTH positions. Raises EngineError if the system grants no memory."""
        cache = SlotCache(Context(self._model, GROWTH, 2, CUT), 0, 1)
        self._caches.append(cache)
        return cache

    def release(self, cache: SlotCache) -> None:
        """Free the slot's context."""
        cache.context.close()
        self._caches.remove(cache)

    def close(self) -> None:
        """Free the contexts of all slots."""
        for cache in self._caches:
            cache.context.close()
        self._caches.clear()

    def forward(self, batch: Sequence[Chunk], caches: Sequence[SlotCache]) -> list[FloatArray]:
        """Compute one chunk, in a longer context if it does not fit."""
        self._grow(caches[0], batch[0].position, batch[0].position + batch[0].rows)
        return super().forward(batch, caches)

    def restore(self, cache: SlotCache, saved: SavedKV) -> None:
        """Append a copy, in a longer context if it does not fit."""
        self._grow(cache, saved.start, saved.end)
        super().restore(cache, saved)

    def _grow(self, cache: SlotCache, held: int, positions: int) -> None:
        """Move a cache that holds `held` positions to a context that has room for `positions`, if its own has not."""
        if positions <= cache.context.cells:
            return
        copy = self.save(cache, 0, held) if held else None
        longer = Context(self._model, -(-positions // GROWTH) * GROWTH, 2, CUT)  # if that fails, the slot stays usable
        cache.context.close()
        cache.context = longer
        if copy:
            super().restore(cache, copy)


def _piece(cache: SlotCache, start: int, end: int) -> npt.NDArray[np.uint8]:
    cache.context.share(cache.sequence, cache.spare, start, end)
    state = cache.context.state(cache.spare)
    cache.context.remove(cache.spare)
    return state


def _rows(batch: Sequence[Chunk], of: Sequence[int], has_head: bool) -> Rows:
    """Join the rows of chunks `of` these sequences.

    With a head, the output of each chunk's last `logits` rows is wanted, else that of all.
    """
    counts = [chunk.rows for chunk in batch]
    inputs = np.concatenate([chunk.inputs for chunk in batch])
    positions = np.concatenate([np.arange(chunk.position, chunk.position + chunk.rows) for chunk in batch])
    left = np.concatenate([np.arange(chunk.rows, 0, -1) for chunk in batch])  # rows of the chunk from here on
    wanted = left <= np.repeat([chunk.logits for chunk in batch], counts) if has_head else np.ones(len(left), bool)
    dtype = np.int32 if inputs.ndim == 1 else np.float32
    sequences = np.repeat(of, counts).astype(np.int32)
    return Rows(inputs.astype(dtype, copy=False), sequences, positions.astype(np.int32), wanted.astype(np.int8))
