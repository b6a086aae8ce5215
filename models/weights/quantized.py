"""A matrix as its GGUF file quantized it: small integers and, for each block of a row, a scale and a minimum."""

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
    """A matrix whose weights are code * scale + minimum, to the bit those of the dequantized tensor.

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

    def rows(self, index: slice | npt.NDArray[np.integer]) -> Floats:
        """Dequantize some of the rows: (count, columns) float32."""
        scales, minimums = self.scales[index], self.minimums[index]
        blocks = self.codes[index].reshape(*scales.shape, self.block)
        return np.asarray(blocks * scales[..., None] + minimums[..., None]).reshape(len(scales), -1)

    @classmethod
    def stacked(cls, parts: Sequence[Self]) -> Self:
        """Stack matrices of equal block size, bits and center on top of each other."""
        codes = np.concatenate([part.codes for part in parts])
        scales = np.concatenate([part.scales for part in parts])
        minimums = np.concatenate([part.minimums for part in parts])
        return cls(codes, scales, minimums, parts[0].bits, parts[0].center)


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
    # A signed byte with its sign bit flipped is the same number counted from -128.
    codes = blocks[..., 2:] ^ np.uint8(0x80)
    return QuantizedMatrix(codes.reshape(rows, -1), scales, -128 * scales, 8, 128)


def _q4_k(packed: Codes, rows: int) -> QuantizedMatrix:
    """Unpack Q4_K: eight blocks of 32 share two float16 factors, of their 6-bit scales and 6-bit minimums."""
    blocks = packed.reshape(rows, -1, 144)
    scales, minimums = _six_bits(blocks[..., 4:16])
    codes = _nibbles(blocks[..., 16:].reshape(rows, -1, 32))
    return QuantizedMatrix(codes, _scaled(_halves(blocks, 0), scales), -_scaled(_halves(blocks, 2), minimums), 4, None)


def _q6_k(packed: Codes, rows: int) -> QuantizedMatrix:
    """Unpack Q6_K: sixteen blocks of 16 share a float16 factor of their signed 8-bit scales."""
    blocks = packed.reshape(rows, -1, 210)
    low = blocks[..., :128].reshape(rows, -1, 2, 1, 64)
    low = np.concatenate((low & 15, low >> 4), axis=3).reshape(rows, -1, 2, 4, 32)
    pairs = blocks[..., None, None, 128:192].reshape(rows, -1, 2, 1, 32) >> _PAIRS
    codes = np.asarray(low | (pairs & 3) << 4, np.uint8).reshape(rows, -1)
    scales = _scaled(_halves(blocks, 208), blocks[..., 192:208].view(np.int8))
    return QuantizedMatrix(codes, scales, -32 * scales, 8, 32)


def _six_bits(packed: Codes) -> tuple[Codes, Codes]:
    """Unpack 8 scales and 8 minimums from 12 bytes: four of each in low bits, the rest in the bits left over."""
    first, second, third = (packed[..., start : start + 4] for start in (0, 4, 8))
    scales = np.concatenate((first & 63, third & 15 | first >> 6 << 4), axis=-1)
    return scales, np.concatenate((second & 63, third >> 4 | second >> 6 << 4), axis=-1)


def _halves(blocks: Codes, start: int) -> Floats:
    """Read the float16 at byte `start` of each block, as float32."""
    stored = np.ascontiguousarray(blocks[..., start : start + 2])
    return np.asarray(stored.view("<f2")[..., 0].astype(np.float32))


def _scaled(halves: Floats, factors: npt.NDArray[np.integer]) -> Floats:
    """Multiply (rows, n) with (rows, n, factors) to (rows, n * factors)."""
    return np.asarray(halves[..., None] * factors, np.float32).reshape(len(halves), -1)


def _nibbles(blocks: Codes) -> Codes:
    """Unpack two 4-bit codes a byte: of each block first all low nibbles, then all high ones."""
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
"""For each kind that can be unpacked, a function of the bytes of a GGUF matrix and its number of rows.

Q4_0, Q8_0 and Q6_K count from the middle of their range, so their minimum is the scale times a power of two, which is
exact. The layouts are those of the `gguf` package's `quants.py`.
"""
