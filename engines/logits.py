"""Which rows of a batch want logits, and how the logits are split over its chunks. No arithmetic.

Uses plain slices: a decode step does this for a row or two, and numpy's own functions would cost more than the rest of
the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from engines.engine import NO_LOGITS, Chunk, FloatArray


def wanted_rows(batch: Sequence[Chunk]) -> npt.NDArray[np.int64]:
    """List the rows of which logits are wanted, counted over all chunks' rows laid end to end."""
    ends = accumulate(chunk.rows for chunk in batch)
    return np.array(
        [row for end, chunk in zip(ends, batch, strict=True) for row in range(end - chunk.logits, end)], np.int64
    )


def split_logits(logits: FloatArray, batch: Sequence[Chunk]) -> list[FloatArray]:
    """Split the logits (wanted rows, vocab) of a batch into one array for each chunk."""
    edges = accumulate((chunk.logits for chunk in batch), initial=0)
    return [logits[begin:end] if end > begin else NO_LOGITS for begin, end in pairwise(edges)]
