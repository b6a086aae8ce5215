"""Rounded blocks are those of the `gguf` package, but for ties, and never far from the weights."""

from __future__ import annotations

import hashlib

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.weights.gguf.blocks import unpacked
from models.weights.rounding import BLOCK, KINDS, rounded_blocks

HASHES = {8: "a5d0823d308175c0", 4: "c5ed1f0e0d672e44"}


@pytest.mark.parametrize("bits", KINDS)
def test_blocks_are_those_of_the_gguf_package(bits: int) -> None:
    weights = np.random.default_rng(1).standard_normal((64, 3 * BLOCK * 37), np.float32)
    found = rounded_blocks(weights, bits)
    expected = gguf.quantize(weights, KINDS[bits]).reshape(-1)
    assert np.count_nonzero(found != expected) < 1e-5 * found.size
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == HASHES[bits]


@pytest.mark.parametrize(("bits", "parts"), [(8, 2 * 127), (4, 8)])
@given(st.data())
def test_rounding_error_is_a_part_of_the_largest_weight(bits: int, parts: int, data: st.DataObject) -> None:
    numbers = st.floats(-1000, 1000, width=32)
    weights = data.draw(arrays.arrays(np.float32, (2, 2 * BLOCK), elements=numbers))
    found = unpacked(rounded_blocks(weights, bits), 2, KINDS[bits]).rows(slice(None))
    largest = np.abs(weights.reshape(2, 2, BLOCK)).max(axis=2, keepdims=True)
    error = np.abs((found - weights).reshape(2, 2, BLOCK))
    # The largest of 16 codes stands for 7 of 8 parts. The error of its float16 scale counts 127 times in the largest
    # weight, and the smallest one is 2**-24.
    assert (error <= largest / parts * 1.0001 + largest / 2000 + 127 * 2.0**-25).all()


def test_block_of_zeros_stays_zero() -> None:
    for bits, kind in KINDS.items():
        assert not unpacked(rounded_blocks(np.zeros((1, BLOCK), np.float32), bits), 1, kind).rows(slice(None)).any()
