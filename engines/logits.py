"""Which rows of a batch want logits, and whose the answers are. No arithmetic.

Plain slices: a decode step does this for a row or two, where numpy's own functions cost more than the rest of the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from engines.engine import NO_LOGITS, Array, Chunk, FloatArray


def wanted_rows(batch: Sequence[Chunk]) -> Array:
    """The places, int64, of the rows whose logits are wanted when all chunks' rows lie one after the other."""
    ends = accumulate(chunk.rows for chunk in batch)
    return np.array(
        [row for end, chunk in zip(ends, batch, strict=True) for row in range(end - chunk.logits, end)], np.int64
    )


def shared_out(logits: FloatArray, batch: Sequence[Chunk]) -> list[FloatArray]:
    """The logits (wanted rows, vocab) of a batch as one array for each chunk."""
    edges = accumulate((chunk.logits for chunk in batch), initial=0)
    return [logits[begin:end] if end > begin else NO_LOGITS for begin, end in pairwise(edges)]
