"""A matrix as its GGUF file quantized it: small integers and, for each block of a row, a scale and a minimum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BlockForm:
    """How a kind of quantized matrix is unpacked: `bits` for a code, columns in a `block`, and the `center`, if any."""

    bits: int
    block: int
    center: int | None


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedMatrix:
    """A matrix of the weights code * scale + minimum, to the bit those of the dequantized tensor.

    `codes` is (rows, columns) uint8; `scales` and `minimums` are (rows, columns / block) float32. `bits` is 4 or 8.
    `center` is the code that stands for 0, or None if that differs from block to block.
    """

    codes: Codes
    scales: Floats
    minimums: Floats
    bits: int
    center: int | None

    @property
    def block(self) -> int:
        """How many consecutive columns share a scale."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    @property
    def form(self) -> BlockForm:
        """What must be equal for matrices to be stacked."""
        return BlockForm(self.bits, self.block, self.center)

    def rows(self, index: slice | npt.NDArray[np.integer]) -> Floats:
        """Dequantize some of the rows: (count, columns) float32."""
        scales, minimums = self.scales[index], self.minimums[index]
        blocks = self.codes[index].reshape(*scales.shape, self.block)
        if self.center is None:
            values = blocks * scales[..., None] + minimums[..., None]
        else:  # the sum could be rounded twice
            values = (blocks - np.float32(self.center)) * scales[..., None]
        return np.asarray(values).reshape(len(scales), -1)

    @classmethod
    def stacked(cls, parts: Sequence[Self]) -> Self:
        """Stack matrices of equal block size, bits and center on top of each other."""
        codes = np.concatenate([part.codes for part in parts])
        scales = np.concatenate([part.scales for part in parts])
        minimums = np.concatenate([part.minimums for part in parts])
        return cls(codes, scales, minimums, parts[0].bits, parts[0].center)
