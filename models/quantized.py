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

_PAIRS = np.array([[0], [2], [4], [6]], np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedMatrix:
    """Weight = code * scale + minimum; nothing is lost against the dequantised tensor, not one bit.

    `codes` is (rows, columns), `scales` and `minimums` are (rows, columns / block). `bits` is 4 or 8. `centre` is the
    code that stands for 0 where that is one and the same in all blocks.
    """

    codes: Codes
    scales: Floats
    minimums: Floats
    bits: int
    centre: int | None

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
        """The rows of all parts below each other; their blocks, bits and centres are alike."""
        codes = np.concatenate([part.codes for part in parts])
        scales = np.concatenate([part.scales for part in parts])
        minimums = np.concatenate([part.minimums for part in parts])
        return cls(codes, scales, minimums, parts[0].bits, parts[0].centre)


def _q4_0(packed: Codes, rows: int) -> QuantizedMatrix:
    blocks = packed.reshape(rows, -1, 18)
    scales = _halves(blocks, 0)
    return QuantizedMatrix(_nibbles(blocks[..., 2:]), scales, -8 * scales, 4, 8)


def _q4_1(packed: Codes, rows: int) -> QuantizedMatrix:
    blocks = packed.reshape(rows, -1, 20)
    return QuantizedMatrix(_nibbles(blocks[..., 4:]), _halves(blocks, 0), _halves(blocks, 2), 4, None)


def _q8_0(packed: Codes, rows: int) -> QuantizedMatrix:
    blocks = packed.reshape(rows, -1, 34)
    scales = _halves(blocks, 0)
    # A signed byte with its sign bit turned is the same number counted from -128.
    codes = blocks[..., 2:] ^ np.uint8(0x80)
    return QuantizedMatrix(codes.reshape(rows, -1), scales, -128 * scales, 8, 128)


def _q4_k(packed: Codes, rows: int) -> QuantizedMatrix:
    """Eight blocks of 32 share two halves, which the 6-bit scale and least value of each are multiplied with."""
    blocks = packed.reshape(rows, -1, 144)
    scales, minimums = _six_bits(blocks[..., 4:16])
    codes = _nibbles(blocks[..., 16:].reshape(rows, -1, 32))
    return QuantizedMatrix(codes, _scaled(_halves(blocks, 0), scales), -_scaled(_halves(blocks, 2), minimums), 4, None)


def _q6_k(packed: Codes, rows: int) -> QuantizedMatrix:
    """Sixteen blocks of 16 share a half, which the signed 8-bit scale of each is multiplied with."""
    blocks = packed.reshape(rows, -1, 210)
    low = blocks[..., :128].reshape(rows, -1, 2, 1, 64)
    low = np.concatenate((low & 15, low >> 4), axis=3).reshape(rows, -1, 2, 4, 32)
    pairs = blocks[..., None, None, 128:192].reshape(rows, -1, 2, 1, 32) >> _PAIRS
    codes = np.asarray(low | (pairs & 3) << 4, np.uint8).reshape(rows, -1)
    scales = _scaled(_halves(blocks, 208), blocks[..., 192:208].view(np.int8))
    return QuantizedMatrix(codes, scales, -32 * scales, 8, 32)


def _six_bits(packed: Codes) -> tuple[Codes, Codes]:
    """12 bytes -> 8 scales and 8 least values: four of each in the low bits, the others in what is left over."""
    first, second, third = (packed[..., start : start + 4] for start in (0, 4, 8))
    scales = np.concatenate((first & 63, third & 15 | first >> 6 << 4), axis=-1)
    return scales, np.concatenate((second & 63, third >> 4 | second >> 6 << 4), axis=-1)


def _halves(blocks: Codes, start: int) -> Floats:
    stored = np.ascontiguousarray(blocks[..., start : start + 2])
    return np.asarray(stored.view("<f2")[..., 0].astype(np.float32))


def _scaled(halves: Floats, factors: npt.NDArray[np.integer]) -> Floats:
    """(rows, n) with (rows, n, factors) -> (rows, n * factors)."""
    return np.asarray(halves[..., None] * factors, np.float32).reshape(len(halves), -1)


def _nibbles(blocks: Codes) -> Codes:
    return np.concatenate((blocks & 15, blocks >> 4), axis=-1).reshape(len(blocks), -1)


UNPACK: Mapping[GGMLQuantizationType, Callable[[Codes, int], QuantizedMatrix]] = MappingProxyType(
    {
        GGMLQuantizationType.Q4_0: _q4_0,
        GGMLQuantizationType.Q4_1: _q4_1,
        GGMLQuantizationType.Q8_0: _q8_0,
        GGMLQuantizationType.Q4_K: _q4_k,
        GGMLQuantizationType.Q6_K: _q6_k,
    }
)
"""(bytes of a GGUF matrix, its rows) -> its blocks, for the kinds that are built this way.

Four-bit codes lie two in a byte, the low nibbles of a block's bytes first, then the high ones. Q4_0, Q8_0 and Q6_K
count from the middle of their range, so their minimum is the scale times a power of two, and that is exact.
"""
