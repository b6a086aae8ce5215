"""Runs a shard in llama.cpp. Each slot's cache is the number of one of its sequences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cluster.shard import Shard
from engines.engine import Chunk, FloatArray, SavedKV
from engines.llamacpp.context import MAX_ROWS, Context, Rows
from engines.settings import MAX_SLOTS
from models.weights.gguf.sizes import GgufSizes

SEQUENCES = MAX_SLOTS + 1
_SPARE = MAX_SLOTS
"""The sequence that copies of some positions go through, since the library copies whole sequences."""


class LlamaCppShardModel:
    """The `ShardModel` of this engine: one context, and which of its sequences are free."""

    def __init__(self, sizes: GgufSizes, shard: Shard, context: Context) -> None:
        self.sizes = sizes.of(shard)
        self.shard = shard
        self._window = sizes.window
        self._context = context
        self._free = list(range(MAX_SLOTS))

    def new_cache(self) -> int:
        """Take a free sequence. A `SlotTable` has no more slots than there are."""
        return self._free.pop()

    def release(self, cache: int) -> None:
        """Drop the sequence's positions, and free it for another slot."""
        self._context.remove(cache)
        self._free.append(cache)

    def truncate(self, cache: int, position: int) -> None:
        """Keep the first `position` positions."""
        self._context.remove(cache, position)

    def save(self, cache: int, start: int, end: int) -> SavedKV:
        """Copy positions in the library's own form, which only the same shard can read.

        Of layers with a window, the library copies only what lies in the window of the position behind the copied ones.
        So the copy is one of several pieces, each shorter than the window.
        """
        step = max(self._window // 2, 1) if self._window else end - start
        pieces = tuple(self._piece(cache, first, min(first + step, end)) for first in range(start, end, step))
        return SavedKV(start, end, sum(piece.nbytes for piece in pieces), pieces)

    def restore(self, cache: int, saved: SavedKV) -> None:
        """Append a copy."""
        for piece in saved.content:
            self._context.set_state(_SPARE, piece)
            self._context.share(_SPARE, cache)
            self._context.remove(_SPARE)

    def _piece(self, cache: int, start: int, end: int) -> npt.NDArray[np.uint8]:
        self._context.share(cache, _SPARE, start, end)
        state = self._context.state(_SPARE)
        self._context.remove(_SPARE)
        return state

    def forward(self, batch: Sequence[Chunk], caches: Sequence[int]) -> list[FloatArray]:
        """Compute all chunks' rows together, MAX_ROWS at a time. The output keeps the order of the rows."""
        rows = _rows(batch, caches, self.shard.is_last)
        count = len(rows.positions)
        passes = [self._context.run(rows.part(start, start + MAX_ROWS)) for start in range(0, count, MAX_ROWS)]
        output = passes[0] if len(passes) == 1 else np.concatenate(passes)
        sizes = [chunk.logits if self.shard.is_last else chunk.rows for chunk in batch]
        return np.split(output, np.cumsum(sizes[:-1]))


def _rows(batch: Sequence[Chunk], caches: Sequence[int], has_head: bool) -> Rows:
    """Join the chunks' rows. With a head, the output of each chunk's last `logits` rows is wanted, else that of all."""
    counts = [chunk.rows for chunk in batch]
    inputs = np.concatenate([chunk.inputs for chunk in batch])
    positions = np.concatenate([np.arange(chunk.position, chunk.position + chunk.rows) for chunk in batch])
    left = np.concatenate([np.arange(chunk.rows, 0, -1) for chunk in batch])  # rows of the chunk from here on
    wanted = left <= np.repeat([chunk.logits for chunk in batch], counts) if has_head else np.ones(len(left), bool)
    dtype = np.int32 if inputs.ndim == 1 else np.float32
    sequences = np.repeat(caches, counts).astype(np.int32)
    return Rows(inputs.astype(dtype, copy=False), sequences, positions.astype(np.int32), wanted.astype(np.int8))
