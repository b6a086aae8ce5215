"""Rounding to a model's dtype, and packing rounded numbers for a frame."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.activations import LARGEST_HALF, packed, rounded, unpacked
from models.architecture import DTYPES, Dtype

SHORT: tuple[Dtype, ...] = ("float16", "bfloat16")
UNITS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
"""The distance of the next number from 1."""


numbers = st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=9)


@given(numbers, st.sampled_from(DTYPES))
def test_rounded_numbers_survive_packing_unchanged(values: list[float], dtype: Dtype) -> None:
    rows = rounded(np.array([values], np.float32), dtype)
    sent = packed(rows, dtype)
    assert sent.itemsize == (4 if dtype == "float32" else 2)
    np.testing.assert_array_equal(unpacked(sent).astype(np.float32), rows)


@given(numbers, st.sampled_from(SHORT))
def test_rounding_takes_the_nearest_and_is_idempotent(values: list[float], dtype: Dtype) -> None:
    exact = np.array(values, np.float32)
    rows = rounded(exact, dtype)
    assert (np.abs(rows - exact) <= np.maximum(np.abs(exact) * UNITS[dtype] / 2, 2.0**-25)).all()
    np.testing.assert_array_equal(rounded(rows, dtype), rows)


@pytest.mark.parametrize("dtype", SHORT)
def test_ties_round_to_even(dtype: Dtype) -> None:
    unit = UNITS[dtype]
    ties = np.array([1 + unit / 2, 1 + 3 * unit / 2, -1 - unit / 2], np.float32)
    assert rounded(ties, dtype).tolist() == [1, 1 + 2 * unit, -1]


def test_values_beyond_float16_become_its_largest() -> None:
    rows = np.array([1e6, -1e6, LARGEST_HALF, 65519], np.float32)
    assert rounded(rows, "float16").tolist() == [LARGEST_HALF, -LARGEST_HALF, LARGEST_HALF, LARGEST_HALF]
    assert packed(rows, "float16").tolist() == [LARGEST_HALF, -LARGEST_HALF, LARGEST_HALF, LARGEST_HALF]


def test_float32_passes_unchanged() -> None:
    rows = np.array([1 / 3, 1e30], np.float32)
    assert rounded(rows, "float32") is rows
    assert packed(rows, "float32") is rows
