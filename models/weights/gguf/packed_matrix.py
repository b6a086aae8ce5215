"""A quantized matrix as the bytes of its GGUF file, unpacked row by row when it is read. Reads no file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from models.weights.gguf.blocks import FORMS, unpacked
from models.weights.quantized import BlockForm, Codes, Floats, QuantizedMatrix, Rows


@dataclass(frozen=True, slots=True, eq=False)
class PackedMatrix:
    """A matrix of a kind of FORMS. `packed` is (rows, bytes of a row) uint8, and may be a mapped file.

    With `order`, row i is row `order[i]` of the bytes.
    """

    packed: Codes
    kind: GGMLQuantizationType
    order: npt.NDArray[np.integer] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        block, block_bytes = GGML_QUANT_SIZES[self.kind]
        rows, row_bytes = self.packed.shape
        return rows, row_bytes // block_bytes * block

    @property
    def form(self) -> BlockForm:
        """What must be equal for matrices to be stacked."""
        return FORMS[self.kind]

    def part(self, index: Rows) -> QuantizedMatrix:
        """Unpack some of the rows. What that takes grows with them: a few should fit the processor's cache."""
        packed = self.packed[index if self.order is None else self.order[index]]
        return unpacked(packed, len(packed), self.kind)

    def rows(self, index: Rows) -> Floats:
        """Dequantize some of the rows: (count, columns) float32."""
        return self.part(index).rows(slice(None))
