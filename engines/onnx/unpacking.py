"""Quantized matrices unpacked into the arrays that MatMulNBits reads. Knows no graph.

A few rows at a time go through all steps, so that what is between them stays in the processor's cache: memory that is
written for the first time costs more than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from engines.engine import FloatArray
from engines.threads import threads
from models.weights.quantized import BlockMatrix, Codes, QuantizedMatrix

PIECE = 1 << 17
"""Weights that are unpacked at once."""


def unpack(matrices: Sequence[BlockMatrix], codes: Codes, scales: FloatArray, rest: FloatArray | None = None) -> None:
    """Write matrices of one form on top of each other, several pieces at a time if the engine has threads.

    `codes` is (outputs, blocks, bytes of a block), `scales` and `rest` are (outputs, blocks); blocks beyond those of
    the matrices stay. `rest` is what a weight is if its code is the middle one.
    """
    pieces, first = [], 0
    for matrix in matrices:
        rows, columns = matrix.shape
        step = max(PIECE // columns, 1)
        pieces += [(matrix, slice(row, min(row + step, rows)), first) for row in range(0, rows, step)]
        first += rows

    def write(pieces: Sequence[tuple[BlockMatrix, slice, int]]) -> None:
        for matrix, rows, first in pieces:
            part = matrix.part(rows)
            place = slice(first + rows.start, first + rows.stop), slice(part.scales.shape[1])
            codes[place] = _operator_order(part)
            scales[place] = part.scales
            if rest is not None:
                rest[place] = part.minimums + part.form.middle * part.scales

    count = threads()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(write, (pieces[thread::count] for thread in range(count))))  # which raises what a thread raised


def _operator_order(part: QuantizedMatrix) -> Codes:
    """Arrange codes as MatMulNBits expects them: (rows, blocks, bytes), 4-bit pairs in a byte, the first one low."""
    form = part.form
    shift = (1 << (form.bits - 1)) - form.middle
    codes = part.codes + np.uint8(shift) if shift else part.codes
    if form.bits == 4:
        pairs = codes.view("<u2")
        codes = (pairs | pairs >> 4).astype(np.uint8)
    return codes.reshape(*part.scales.shape, -1)
