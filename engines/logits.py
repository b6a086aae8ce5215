"""Which rows of a batch want logits, and whose the answers are. No arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engines.engine import NO_LOGITS, Array, Chunk, FloatArray


def wanted_rows(batch: Sequence[Chunk]) -> Array:
    """The places, int64, of the rows whose logits are wanted when all chunks' rows lie one after the other."""
    ends = np.cumsum([chunk.rows for chunk in batch])
    spans = [np.arange(end - chunk.logits, end) for end, chunk in zip(ends, batch, strict=True)]
    return np.concatenate(spans)


def shared_out(logits: FloatArray, batch: Sequence[Chunk]) -> list[FloatArray]:
    """The logits (wanted rows, vocab) of a batch as one array for each chunk."""
    parts = np.split(logits, np.cumsum([chunk.logits for chunk in batch])[:-1])
    return [part if chunk.logits else NO_LOGITS for part, chunk in zip(parts, batch, strict=True)]
