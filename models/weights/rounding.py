"""Rounds float32 weights to GGUF blocks of 32 numbers that share a scale. Reads no file.

The formats are llama.cpp's Q8_0 and Q4_0, by the rules of its reference (`ggml-quants.c`), but that a number halfway
between two codes becomes the even one. The `gguf` package does the same in three times the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from models.weights.quantized import Codes, Floats

BLOCK = 32
KINDS: Mapping[int, GGMLQuantizationType] = MappingProxyType(
    {8: GGMLQuantizationType.Q8_0, 4: GGMLQuantizationType.Q4_0}
)
"""What `rounded_blocks` makes, by bits."""

SMALLEST_SCALE = 2.0**-25
"""A float16 rounds what is not larger to 0."""

_PIECE = 1 << 10  # blocks that fit a processor's cache


def rounded_blocks(weights: Floats, bits: int) -> Codes:
    """Round a multiple of BLOCK weights to the bytes of a GGUF tensor: flat uint8."""
    blocks = weights.reshape(-1, BLOCK)
    packed = np.empty((len(blocks), GGML_QUANT_SIZES[KINDS[bits]][1]), np.uint8)
    for start in range(0, len(blocks), _PIECE):
        # Turned over, so that each step runs along all blocks at once.
        piece = blocks[start : start + _PIECE].T.copy()
        scales, codes = _ROUND[bits](piece)
        packed[start : start + _PIECE, :2] = scales.astype("<f2")[:, None].view(np.uint8)
        packed[start : start + _PIECE, 2:] = codes.T
    return packed.reshape(-1)


def _eight_bits(columns: Floats) -> tuple[Floats, Codes]:
    """Scale each block so that its largest weight becomes 127. The blocks are columns, and are overwritten."""
    scales = np.maximum(columns.max(axis=0), -columns.min(axis=0)) / np.float32(127)
    columns *= _inverse(scales)
    return scales, np.rint(columns, out=columns).astype(np.int8).view(np.uint8)


def _four_bits(columns: Floats) -> tuple[Floats, Codes]:
    """Scale each block so that its largest weight becomes -8, which code 0 stands for."""
    low, high = columns.min(axis=0), columns.max(axis=0)
    scales = np.where(high > -low, high, low) / np.float32(-8)
    columns *= _inverse(scales)
    codes = np.minimum(np.rint(columns, out=columns).astype(np.int8) + np.int8(8), np.int8(15)).view(np.uint8)
    return scales, codes[: BLOCK // 2] | codes[BLOCK // 2 :] << 4


def _inverse(scales: Floats) -> Floats:
    """Return 1 / scale for each block; 0 for a block of zeros, or of weights for which float16 has no scale."""
    return np.divide(1, scales, out=np.zeros_like(scales), where=np.abs(scales) > SMALLEST_SCALE)


_ROUND: Mapping[int, Callable[[Floats], tuple[Floats, Codes]]] = {8: _eight_bits, 4: _four_bits}
