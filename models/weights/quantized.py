"""Matrices as their files quantized them: small integers and, for each block of a row, a scale and a minimum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Rows = slice | npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class BlockForm:
    """How a kind of quantized matrix is unpacked: `bits` for a code, columns in a `block`, and the `center`, if any.

    `bits` is 4 or 8. The center is the code that stands for 0; it is None if that differs from block to block. `levels`
    says how many codes there are, if fewer than the bits could name.
    """

    bits: int
    block: int
    center: int | None
    levels: int = 0

    @property
    def middle(self) -> int:
        """The center, or else the middle of the codes."""
        return self.center if self.center is not None else (self.levels or 1 << self.bits) // 2


class BlockMatrix(Protocol):
    """A quantized matrix that may still be packed, or lie in a file: what is asked for is unpacked then."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        ...

    @property
    def form(self) -> BlockForm:
        """What must be equal for matrices to be stacked."""
        ...

    def part(self, index: Rows) -> QuantizedMatrix:
        """Unpack some of the rows."""
        ...

    def rows(self, index: Rows) -> Floats:
        """Dequantize some of the rows: (count, columns) float32."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedMatrix:
    """A matrix of the weights code * scale + minimum, to the bit those of the dequantized tensor.

    `codes` is (rows, columns) uint8; `scales` and `minimums` are (rows, columns / block) float32.
    """

    codes: Codes
    scales: Floats
    minimums: Floats
    form: BlockForm

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.codes.shape
        return rows, columns

    def part(self, index: Rows) -> QuantizedMatrix:
        """Take some of the rows."""
        return QuantizedMatrix(self.codes[index], self.scales[index], self.minimums[index], self.form)

    def rows(self, index: Rows) -> Floats:
        """Dequantize some of the rows: (count, columns) float32."""
        scales, minimums = self.scales[index], self.minimums[index]
        blocks = self.codes[index].reshape(*scales.shape, self.form.block)
        if self.form.center is None:
            values = blocks * scales[..., None] + minimums[..., None]
        else:  # the sum could be rounded twice
            values = (blocks - np.float32(self.form.center)) * scales[..., None]
        return np.asarray(values).reshape(len(scales), -1)
