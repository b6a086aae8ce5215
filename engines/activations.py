"""The dtypes of hidden states between layers and on the wire. Knows arrays, but no engines and no frames.

In memory hidden states are float32, rounded to the model's dtype. numpy has no bfloat16 of its own, so in a frame its
bits travel as uint16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from ml_dtypes import bfloat16

from models.architecture import Dtype

LARGEST_HALF = 65504.0
"""The largest number that float16 holds."""


def rounded(rows: npt.NDArray[np.float32], dtype: Dtype) -> npt.NDArray[np.float32]:
    """Round to the nearest numbers of a dtype, ties to even, and keep them as float32.

    Numbers beyond the range of float16 become its largest.
    """
    if dtype == "float16":
        return _half(rows).astype(np.float32)
    if dtype == "bfloat16":
        return rows.astype(bfloat16).astype(np.float32)
    return rows


def packed(rows: npt.NDArray[np.float32], dtype: Dtype) -> npt.NDArray[Any]:
    """Convert float32 numbers to what a frame carries: float32, float16, or the bits of bfloat16 as uint16."""
    if dtype == "float16":
        return _half(rows)
    if dtype == "bfloat16":
        return rows.astype(bfloat16).view(np.uint16)
    return rows


def unpacked(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Convert what a frame carried to what an engine takes: uint16 is bfloat16, other dtypes stay as they are."""
    if values.dtype == np.uint16:
        widened: npt.NDArray[np.float32] = values.view(bfloat16).astype(np.float32)
        return widened
    return values


def _half(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    return np.clip(rows, np.float32(-LARGEST_HALF), np.float32(LARGEST_HALF)).astype(np.float16)
