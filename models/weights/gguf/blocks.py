"""The quantized blocks of GGUF files, unpacked into codes, scales and minimums. Reads no file.

The layouts are those of the `gguf` package's `quants.py`. Codes of 2 and 3 bits become codes of 4, those of 5 and 6
bits, and the values that IQ4 and MXFP4 look up in a table, codes of 8: no number changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType
from gguf.quants import IQ4_NL, MXFP4

from models.weights.quantized import BlockForm, Codes, Floats, QuantizedMatrix

_FOUR = np.array([[0], [2], [4], [6]], np.uint8)
_EIGHT = np.arange(8, dtype=np.uint8)[:, None]
_SIGNED = 128  # the center of codes of 8 bits that stand for signed numbers
_IQ4_CODES = np.array(IQ4_NL.kvalues, np.int8).view(np.uint8) ^ np.uint8(_SIGNED)
_MXFP4_CENTER = 12
_MXFP4_CODES = np.array(MXFP4.kvalues, np.int8).view(np.uint8) + np.uint8(_MXFP4_CENTER)


def unpacked(packed: Codes, rows: int, kind: GGMLQuantizationType) -> QuantizedMatrix:
    """Unpack a GGUF matrix of a kind of FORMS from its bytes."""
    form = FORMS[kind]
    codes, scales, minimums = _UNPACK[kind](packed, rows)
    if minimums is None:
        minimums = np.float32(-(form.center or 0)) * scales
    return QuantizedMatrix(codes, scales, minimums, form)


_Parts = tuple[Codes, Floats, Floats | None]
"""Codes, scales and minimums; None if they follow from the center."""


def _q4_0(packed: Codes, rows: int) -> _Parts:
    blocks = packed.reshape(rows, -1, 18)
    return _nibbles(blocks[..., 2:]), _halves(blocks, 0), None


def _q4_1(packed: Codes, rows: int) -> _Parts:
    blocks = packed.reshape(rows, -1, 20)
    return _nibbles(blocks[..., 4:]), _halves(blocks, 0), _halves(blocks, 2)


def _q5_0(packed: Codes, rows: int) -> _Parts:
    blocks = packed.reshape(rows, -1, 22)
    return _fifth_bits(blocks[..., 2:]), _halves(blocks, 0), None


def _q5_1(packed: Codes, rows: int) -> _Parts:
    blocks = packed.reshape(rows, -1, 24)
    return _fifth_bits(blocks[..., 4:]), _halves(blocks, 0), _halves(blocks, 2)


def _q8_0(packed: Codes, rows: int) -> _Parts:
    blocks = packed.reshape(rows, -1, 34)
    # A signed byte with its sign bit flipped is the same number counted from -128.
    codes = _contiguous(blocks[..., 2:]) ^ np.uint8(_SIGNED)
    return codes.reshape(rows, -1), _halves(blocks, 0), None


def _q2_k(packed: Codes, rows: int) -> _Parts:
    """Unpack Q2_K: sixteen blocks of 16 share two float16 factors, of their 4-bit scales and 4-bit minimums."""
    blocks = packed.reshape(rows, -1, 84)
    pairs = blocks[..., 16:80].reshape(rows, -1, 1, 32) >> _FOUR
    scales, minimums = blocks[..., :16] & 15, blocks[..., :16] >> 4
    codes = np.asarray(pairs & 3, np.uint8).reshape(rows, -1)
    return codes, _scaled(_halves(blocks, 80), scales), -_scaled(_halves(blocks, 82), minimums)


def _q3_k(packed: Codes, rows: int) -> _Parts:
    """Unpack Q3_K: sixteen blocks of 16 share a float16 factor of their signed 6-bit scales."""
    blocks = packed.reshape(rows, -1, 110)
    low = blocks[..., 32:96].reshape(rows, -1, 1, 32) >> _FOUR & 3
    high = blocks[..., None, :32] >> _EIGHT & 1
    codes = np.asarray(low.reshape(rows, -1) | high.reshape(rows, -1) << 2, np.uint8)
    four, two = blocks[..., 96:104], blocks[..., None, 104:108] >> _FOUR & 3
    scales = np.concatenate((four & 15, four >> 4), axis=-1) | two.reshape(*blocks.shape[:2], 16) << 4
    return codes, _scaled(_halves(blocks, 108), scales.view(np.int8) - np.int8(32)), None


def _q4_k(packed: Codes, rows: int) -> _Parts:
    """Unpack Q4_K: eight blocks of 32 share two float16 factors, of their 6-bit scales and 6-bit minimums."""
    blocks = packed.reshape(rows, -1, 144)
    scales, minimums = _six_bits(blocks[..., 4:16])
    codes = _nibbles(blocks[..., 16:].reshape(rows, -1, 32))
    return codes, _scaled(_halves(blocks, 0), scales), -_scaled(_halves(blocks, 2), minimums)


def _q5_k(packed: Codes, rows: int) -> _Parts:
    """Unpack Q5_K: Q4_K with a fifth bit for each code."""
    blocks = packed.reshape(rows, -1, 176)
    scales, minimums = _six_bits(blocks[..., 4:16])
    low = _nibbles(blocks[..., 48:].reshape(rows, -1, 32))
    high = blocks[..., None, 16:48] >> _EIGHT & 1
    codes = np.asarray(low | high.reshape(rows, -1) << 4, np.uint8)
    return codes, _scaled(_halves(blocks, 0), scales), -_scaled(_halves(blocks, 2), minimums)


def _q6_k(packed: Codes, rows: int) -> _Parts:
    """Unpack Q6_K: sixteen blocks of 16 share a float16 factor of their signed 8-bit scales."""
    blocks = packed.reshape(rows, -1, 210)
    codes = _nibbles(blocks[..., :128].reshape(rows, -1, 64))
    pairs = _contiguous(blocks[..., 128:192]).view("<u2")
    high = np.empty((rows, blocks.shape[1] * 2, 4, 32), np.uint8)
    for quarter, shifted in enumerate((pairs << 4, pairs << 2, pairs, pairs >> 2)):
        _put(shifted & 0x3030, high[..., quarter, :])
    codes |= high.reshape(rows, -1)
    return codes, _scaled(_halves(blocks, 208), blocks[..., 192:208].view(np.int8)), None


def _iq4_nl(packed: Codes, rows: int) -> _Parts:
    blocks = packed.reshape(rows, -1, 18)
    return _IQ4_CODES[_nibbles(blocks[..., 2:])], _halves(blocks, 0), None


def _iq4_xs(packed: Codes, rows: int) -> _Parts:
    """Unpack IQ4_XS: eight blocks of 32 share a float16 factor of their signed 6-bit scales."""
    blocks = packed.reshape(rows, -1, 136)
    codes = _IQ4_CODES[_nibbles(blocks[..., 8:].reshape(rows, -1, 16))]
    four = np.stack((blocks[..., 4:8] & 15, blocks[..., 4:8] >> 4), axis=-1)
    two = blocks[..., 2:4, None] >> _FOUR[:, 0] & 3
    scales = four.reshape(*blocks.shape[:2], 8) | two.reshape(*blocks.shape[:2], 8) << 4
    return codes, _scaled(_halves(blocks, 0), scales.view(np.int8) - np.int8(32)), None


def _mxfp4(packed: Codes, rows: int) -> _Parts:
    """Unpack MXFP4: a block of 32 has an exponent of 8 bits, and its values count halves."""
    blocks = packed.reshape(rows, -1, 17)
    scales = MXFP4.e8m0_to_fp32_half(blocks[..., 0])
    return _MXFP4_CODES[_nibbles(blocks[..., 1:])], np.asarray(scales, np.float32), None


def _six_bits(packed: Codes) -> tuple[Codes, Codes]:
    """Unpack 8 scales and 8 minimums from 12 bytes: four of each in low bits, the rest in the bits left over."""
    first, second, third = (packed[..., start : start + 4] for start in (0, 4, 8))
    scales = np.concatenate((first & 63, third & 15 | first >> 6 << 4), axis=-1)
    return scales, np.concatenate((second & 63, third >> 4 | second >> 6 << 4), axis=-1)


def _halves(blocks: Codes, start: int) -> Floats:
    """Read the float16 at byte `start` of each block, as float32."""
    return np.asarray(blocks[..., start : start + 2].view("<f2")[..., 0].astype(np.float32))


def _scaled(halves: Floats, factors: npt.NDArray[np.integer]) -> Floats:
    """Multiply (rows, n) with (rows, n, factors) to (rows, n * factors)."""
    return np.asarray(halves[..., None] * factors, np.float32).reshape(len(halves), -1)


def _nibbles(blocks: Codes) -> Codes:
    """Unpack two 4-bit codes a byte: of each block first all low nibbles, then all high ones."""
    pairs = _contiguous(blocks).view("<u2")  # numpy shifts these in a tenth of the time that bytes take
    codes = np.empty((*blocks.shape[:-1], 2, blocks.shape[-1]), np.uint8)
    _put(pairs & 0x0F0F, codes[..., 0, :])
    _put(pairs >> 4 & 0x0F0F, codes[..., 1, :])
    return codes.reshape(len(blocks), -1)


def _contiguous(runs: Codes) -> Codes:
    """Put runs of bytes next to each other; a single one may not be copied.

    A run counts as one item, since numpy is slow with short rows.
    """
    return np.ascontiguousarray(runs.view(f"V{runs.shape[-1]}")).view(np.uint8)


def _put(values: npt.NDArray[Any], places: Codes) -> None:
    """Copy contiguous runs of bytes to their places, as `_contiguous` does."""
    run = f"V{places.shape[-1]}"
    places.view(run)[...] = values.view(run).reshape(*places.shape[:-1], 1)


def _fifth_bits(blocks: Codes) -> Codes:
    """Unpack blocks of 32 codes: the fifth bits in 4 bytes, then the low four bits in 16."""
    high = np.unpackbits(blocks[..., :4], axis=-1, bitorder="little")
    return np.asarray(_nibbles(blocks[..., 4:]) | high.reshape(len(blocks), -1) << 4, np.uint8)


_KINDS: Mapping[str, tuple[Callable[[Codes, int], _Parts], BlockForm]] = {
    "Q4_0": (_q4_0, BlockForm(4, 32, 8)),
    "Q4_1": (_q4_1, BlockForm(4, 32, None)),
    "Q5_0": (_q5_0, BlockForm(8, 32, 16)),
    "Q5_1": (_q5_1, BlockForm(8, 32, None, 32)),
    "Q8_0": (_q8_0, BlockForm(8, 32, _SIGNED)),
    "Q2_K": (_q2_k, BlockForm(4, 16, None, 4)),
    "Q3_K": (_q3_k, BlockForm(4, 16, 4)),
    "Q4_K": (_q4_k, BlockForm(4, 32, None)),
    "Q5_K": (_q5_k, BlockForm(8, 32, None, 32)),
    "Q6_K": (_q6_k, BlockForm(8, 16, 32)),
    "IQ4_NL": (_iq4_nl, BlockForm(8, 32, _SIGNED)),
    "IQ4_XS": (_iq4_xs, BlockForm(8, 32, _SIGNED)),
    "MXFP4": (_mxfp4, BlockForm(8, 32, _MXFP4_CENTER)),
}
_UNPACK = {GGMLQuantizationType[name]: unpack for name, (unpack, _) in _KINDS.items()}

FORMS: Mapping[GGMLQuantizationType, BlockForm] = MappingProxyType(
    {GGMLQuantizationType[name]: form for name, (_, form) in _KINDS.items()}
)
"""The kinds that `unpacked` takes, and how they are unpacked."""
