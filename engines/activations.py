"""The dtypes that hidden states have between layers and on the wire. Knows arrays, no engines and no frames.

numpy has no bfloat16: its bits travel as uint16, and in memory such numbers are float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from models.config import Dtype

LARGEST_HALF = 65504.0
"""The largest number that float16 holds."""

_HALF_OF_LOWEST = np.uint32(0x7FFF)
_HIGH_BITS = np.uint32(0xFFFF0000)


def rounded(rows: npt.NDArray[np.float32], dtype: Dtype) -> npt.NDArray[np.float32]:
    """The nearest numbers of a dtype, ties to even, as float32; what float16 cannot hold becomes its largest."""
    if dtype == "float16":
        return _half(rows).astype(np.float32)
    if dtype == "bfloat16":
        bits = rows.view(np.uint32)
        even = (bits >> np.uint32(16)) & np.uint32(1)
        return np.asarray(((bits + _HALF_OF_LOWEST + even) & _HIGH_BITS).view(np.float32))
    return rows


def packed(rows: npt.NDArray[np.float32], dtype: Dtype) -> npt.NDArray[Any]:
    """Rounded float32 numbers in the bytes of their dtype, ready for a frame: float32, float16 or uint16."""
    if dtype == "float16":
        return _half(rows)
    if dtype == "bfloat16":
        return (rounded(rows, dtype).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return rows


def unpacked(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What came in a frame as an engine takes it: uint16 is bfloat16, other dtypes stay as they are."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values


def _half(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    return np.clip(rows, np.float32(-LARGEST_HALF), np.float32(LARGEST_HALF)).astype(np.float16)
