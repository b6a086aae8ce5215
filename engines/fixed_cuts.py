"""Cuts chunks at fixed positions, so that a row shares its pass with the same rows wherever the chunk begins.

Knows no slots and no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from engines.engine import NO_LOGITS, Chunk, FloatArray
from engines.settings import CUT


def pieces(chunk: Chunk) -> list[Chunk]:
    """Cut a chunk at the multiples of CUT. The pieces want the logits of the same rows."""
    end = chunk.position + chunk.rows
    starts = [chunk.position, *range(chunk.position // CUT * CUT + CUT, end, CUT)]
    edges = zip(starts, [*starts[1:], end], strict=True)
    return [
        replace(
            chunk,
            position=start,
            inputs=chunk.inputs[start - chunk.position : stop - chunk.position],
            logits=max(stop - max(start, end - chunk.logits), 0),
        )
        for start, stop in edges
    ]


def joined(outputs: Sequence[FloatArray]) -> FloatArray:
    """Join the outputs of a chunk's pieces. Those without logits are left out."""
    return (
        outputs[0]
        if len(outputs) == 1
        else np.concatenate([output for output in outputs if len(output)] or [NO_LOGITS])
    )
