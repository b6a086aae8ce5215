"""Where the rows of one run stand: a lane for each chunk, one step after the other. Knows no memory and no runtime."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from engines.engine import Array


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """All lanes from the first to the last that have a chunk; what the arrays say is counted from the first.

    `places` (chunks,) is each chunk's lane. `rows` (lanes, steps) says which row of the batch stands where, some row
    for the `idle` lanes that have no chunk. `order` (rows, 2) is in which lane and step each row stands.
    """

    first: int
    end: int
    idle: tuple[int, ...]
    places: Array
    rows: Array
    order: Array


@lru_cache(maxsize=64)
def lay_out(lanes: tuple[int, ...], steps: int) -> Grid:
    """The grid of chunks of `steps` rows each in these lanes; kept, as sessions that decode together stay together."""
    first, end = min(lanes), max(lanes) + 1
    places = np.array(lanes) - first
    rows = np.zeros((end - first, steps), np.int64)
    rows[places] = np.arange(len(lanes) * steps).reshape(-1, steps)
    order = np.stack((places.repeat(steps), np.tile(np.arange(steps), len(lanes))), axis=1)
    return Grid(first, end, tuple(sorted(set(range(first, end)) - set(lanes))), places, rows, order)
