"""Weights of 8-bit floats (e4m3) and the scales that stand beside them in safetensors files. Reads no file.

A matrix `x.weight` is multiplied with `x.weight_scale_inv` (in DeepSeek's files) or `x.weight_scale` (in those of
compressed-tensors): one number for all, one for each row, or one for each block of rows and columns.
"""

from __future__ import annotations

from typing import Generic

import msgspec
import numpy as np

from models.weights.quantized import Floats
from models.weights.stored import StoredT

KIND = "F8_E4M3"
BLOCK = 128
"""Rows, and columns, of a block that has a scale: no published model has other blocks."""


class Scaling(msgspec.Struct, Generic[StoredT], frozen=True):
    """The scale of a tensor that begins at the byte `offset` of its file and has `rows` rows of `row_bytes` bytes."""

    scale: StoredT
    offset: int
    rows: int
    row_bytes: int


def scale_names(name: str) -> tuple[str, ...]:
    """Return the names that the scale of a tensor may have."""
    return f"{name}_scale_inv", f"{name}_scale"


def scale_fits(shape: tuple[int, ...], scale: tuple[int, ...]) -> bool:
    """Return whether a scale of this shape belongs to a matrix of that one."""
    each = zip(shape, _padded(scale), strict=False)
    return len(shape) == 2 and len(scale) < 3 and all(count in (1, size, -(-size // BLOCK)) for size, count in each)


def scaled(values: Floats, scale: Floats, first: int, rows: int) -> Floats:
    """Multiply rows of a matrix, `first` and those after it of `rows`, with their part of its scale."""
    scale = scale.reshape(_padded(scale.shape))
    for axis, size in enumerate((rows, values.shape[1])):
        if scale.shape[axis] not in (1, size):
            scale = np.repeat(scale, BLOCK, axis)
    part = scale[first : first + len(values)] if len(scale) > 1 else scale
    return values * (part[:, : values.shape[1]] if part.shape[1] > 1 else part)


def _padded(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape, 1, 1)[:2]
