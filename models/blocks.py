"""A matrix as its file quantised it: small whole numbers and, per block of a row, a scale and a least value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class QuantisedBlocks:
    """Weight = code * scale + minimum; nothing is lost against the dequantised tensor, not one bit.

    `codes` is (rows, columns), `scales` and `minimums` are (rows, columns / block). `bits` is 4 or 8.
    """

    codes: Codes
    scales: Floats
    minimums: Floats
    bits: int

    @property
    def block(self) -> int:
        """How many neighbours in a row share a scale."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    def rows(self, index: slice | npt.NDArray[np.integer]) -> Floats:
        """The rows asked for, dequantised: (count, columns) float32."""
        scales, minimums = self.scales[index], self.minimums[index]
        blocks = self.codes[index].reshape(*scales.shape, self.block)
        return np.asarray(blocks * scales[..., None] + minimums[..., None]).reshape(len(scales), -1)

    @classmethod
    def stacked(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts below each other; their blocks and bits are alike."""
        codes = np.concatenate([part.codes for part in parts])
        scales = np.concatenate([part.scales for part in parts])
        minimums = np.concatenate([part.minimums for part in parts])
        return cls(codes, scales, minimums, parts[0].bits)


def _q4_0(packed: Codes, rows: int) -> QuantisedBlocks:
    blocks = packed.reshape(rows, -1, 18)
    scales = _halves(blocks, 0)
    return QuantisedBlocks(_nibbles(blocks[..., 2:]), scales, scales * np.float32(-8), 4)


def _q4_1(packed: Codes, rows: int) -> QuantisedBlocks:
    blocks = packed.reshape(rows, -1, 20)
    return QuantisedBlocks(_nibbles(blocks[..., 4:]), _halves(blocks, 0), _halves(blocks, 2), 4)


def _q8_0(packed: Codes, rows: int) -> QuantisedBlocks:
    blocks = packed.reshape(rows, -1, 34)
    scales = _halves(blocks, 0)
    # A signed byte with its sign bit turned is the same number counted from -128.
    return QuantisedBlocks((blocks[..., 2:] ^ np.uint8(0x80)).reshape(rows, -1), scales, scales * np.float32(-128), 8)


def _halves(blocks: Codes, start: int) -> Floats:
    stored = np.ascontiguousarray(blocks[..., start : start + 2])
    return np.asarray(stored.view("<f2")[..., 0].astype(np.float32))


def _nibbles(blocks: Codes) -> Codes:
    return np.concatenate((blocks & 15, blocks >> 4), axis=-1).reshape(len(blocks), -1)


UNPACK: Mapping[GGMLQuantizationType, Callable[[Codes, int], QuantisedBlocks]] = MappingProxyType(
    {GGMLQuantizationType.Q4_0: _q4_0, GGMLQuantizationType.Q4_1: _q4_1, GGMLQuantizationType.Q8_0: _q8_0}
)
"""(bytes of a GGUF matrix, its rows) -> its blocks, for the kinds that are built this way.

Q4_0 and Q4_1 keep the 16 low nibbles of a block first, then the 16 high ones. Q4_0 and Q8_0 count from the
middle of their range, so their minimum follows from the scale, and exactly: it is the scale times a power of two.
"""
