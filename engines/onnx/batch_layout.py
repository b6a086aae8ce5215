"""Where the rows of one run stand: a lane for each chunk, one step after the other. Knows no memory and no runtime."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from engines.engine import Array


@dataclass(frozen=True, slots=True, eq=False)
class BatchLayout:
    """All lanes from the first to the last that have a chunk; what the arrays say is counted from the first.

    `places` (chunks,) is each chunk's lane. `rows` (lanes, steps) says which row of the batch stands where, some row
    for the `idle` lanes that have no chunk and for the `spare` steps behind a chunk. `order` (rows, 2) is in which
    lane and step each row stands.
    """

    first: int
    end: int
    idle: tuple[int, ...]
    places: Array
    rows: Array
    order: Array
    spare: int


@lru_cache(maxsize=64)
def lay_out(lanes: tuple[int, ...], rows: int) -> BatchLayout:
    """The grid of chunks of `rows` rows each in these lanes; kept, as sessions that decode together stay together.

    A row that is alone gets a spare step behind it. The attention kernel takes another way for one step than for
    several, with other last bits: so a row has the same bits alone and in a longer chunk.
    """
    spare = int(len(lanes) == rows == 1)
    first, end = min(lanes), max(lanes) + 1
    places = np.array(lanes) - first
    grid = np.zeros((end - first, rows + spare), np.int64)
    grid[places, :rows] = np.arange(len(lanes) * rows).reshape(-1, rows)
    order = np.stack((places.repeat(rows), np.tile(np.arange(rows), len(lanes))), axis=1)
    return BatchLayout(first, end, tuple(sorted(set(range(first, end)) - set(lanes))), places, grid, order, spare)
