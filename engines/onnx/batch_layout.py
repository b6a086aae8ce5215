"""How the rows of a batch are padded to (pool entries, steps) for the attention kernel. Knows no memory, no runtime."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class BatchLayout:
    """A padded batch over the pool's entries `first` to `end`, which include all that have a chunk.

    The arrays are int64, and count entries from `first`.
    """

    first: int
    end: int
    idle: tuple[int, ...]
    """Entries between first and end without a chunk, counted in the pool."""
    entries: npt.NDArray[np.int64]
    """(chunks,): the entry of each chunk."""
    pad_index: npt.NDArray[np.int64]
    """(entries, steps): the batch's row at each place; an arbitrary one for idle entries and spare steps."""
    unpad_index: npt.NDArray[np.int64]
    """(rows, 2): the entry and step of each row of the batch."""
    spare: int
    """How many spare steps follow the rows of a chunk."""


@lru_cache(maxsize=64)
def lay_out(entries: tuple[int, ...], rows: int) -> BatchLayout:
    """Lay out chunks of `rows` rows each in these entries. Cached, since sessions that decode together recur.

    A single row gets a spare step after it. The attention kernel computes one step in another way than several, with
    different last bits, so without it a row would not have the same bits alone as in a longer chunk.
    """
    spare = int(len(entries) == rows == 1)
    first, end = min(entries), max(entries) + 1
    relative = np.array(entries) - first
    pad_index = np.zeros((end - first, rows + spare), np.int64)
    pad_index[relative, :rows] = np.arange(len(entries) * rows).reshape(-1, rows)
    unpad_index = np.stack((relative.repeat(rows), np.tile(np.arange(rows), len(entries))), axis=1)
    idle = tuple(sorted(set(range(first, end)) - set(entries)))
    return BatchLayout(first, end, idle, relative, pad_index, unpad_index, spare)
