"""Matrices of bfloat16 are held in 16 bits."""

from __future__ import annotations

import numpy as np
import pytest
from ml_dtypes import bfloat16
from tinygrad import dtypes

from engines.engine import FloatArray
from engines.tinygrad.linear import floats, hold

RANDOM = np.random.default_rng(0).standard_normal((40, 8), np.float32)
SHORT = RANDOM.astype(bfloat16).astype(np.float32)


@pytest.mark.usefixtures("clang")
@pytest.mark.parametrize(
    ("matrix", "dtype"),
    [
        (RANDOM, dtypes.float32),
        (SHORT, dtypes.uint16),
        (SHORT.reshape(4, 10, 8), dtypes.uint16),
        (SHORT[0], dtypes.float32),
    ],
    ids=["float32", "bfloat16", "experts", "vector"],
)
def test_held_tensor_keeps_every_bit(matrix: FloatArray, dtype: object) -> None:
    held = hold(matrix)
    assert held.dtype == dtype
    widened = floats(held).numpy()
    np.testing.assert_array_equal(widened.view(np.uint32), matrix.view(np.uint32))
