"""How the rows of a batch are padded to (pool entries, steps) for the attention kernel. Knows no memory, no runtime."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Padding:
    """What a pass of few rows is padded with, since kernels compute a row alone in another way than several.

    With `spare_step` a lone row has the bits that it has in a longer chunk. Without, and with `rows` and `wanted` large
    enough for the kernels, it has the bits that it has among rows of other slots.
    """

    spare_step: bool = True
    """Whether a lone row gets a spare step after it in attention."""
    rows: int = 1
    """The fewest rows of a product in the layers."""
    wanted: int = 1
    """The fewest rows of a product in the head."""


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
    """(rows + copies, 2): the entry and step of each row of the batch."""
    spare: int
    """How many spare steps follow the rows of a chunk."""
    copies: int
    """How many copies of the first row follow the rows of the batch."""


@lru_cache(maxsize=64)
def lay_out(entries: tuple[int, ...], rows: int, padding: Padding) -> BatchLayout:
    """Lay out chunks of `rows` rows each in these entries. Cached, since sessions that decode together recur."""
    spare = int(padding.spare_step and len(entries) == rows == 1)
    copies = max(padding.rows - len(entries) * rows, 0)
    first, end = min(entries), max(entries) + 1
    relative = np.array(entries) - first
    pad_index = np.zeros((end - first, rows + spare), np.int64)
    pad_index[relative, :rows] = np.arange(len(entries) * rows).reshape(-1, rows)
    unpad_index = np.stack((relative.repeat(rows), np.tile(np.arange(rows), len(entries))), axis=1)
    unpad_index = np.concatenate((unpad_index, unpad_index[:1].repeat(copies, axis=0)))
    idle = tuple(sorted(set(range(first, end)) - set(entries)))
    return BatchLayout(first, end, idle, relative, pad_index, unpad_index, spare, copies)
