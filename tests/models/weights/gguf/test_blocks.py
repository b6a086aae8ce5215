"""Every kind of block that is unpacked has the numbers of the `gguf` package's reference, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import gguf
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st

from models.weights.gguf.blocks import FORMS, unpacked
from tests.support.models import HALVES

HASHES: Mapping[str, str] = {
    "Q4_0": "fe503f4f0c645ee9",
    "Q4_1": "9005d665f9a3b4f8",
    "Q5_0": "396139e899ba82f1",
    "Q5_1": "4d2b8a3289d1f63a",
    "Q8_0": "6d76e33364618edf",
    "Q2_K": "59ae87a1de503627",
    "Q3_K": "376958155bf8999b",
    "Q4_K": "92d7a29600cf82d9",
    "Q5_K": "27d6038b0829201c",
    "Q6_K": "17797f915b95be35",
    "IQ4_NL": "262b244268775461",
    "IQ4_XS": "965abfd013f264a7",
    "MXFP4": "bd68c0a94f295dd8",
}
"""The sha256, shortened, of the dequantized bytes of `fixed_bytes`."""


@given(st.data())
def test_unpacking_matches_the_gguf_package(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(FORMS)))
    _, block_bytes = GGML_QUANT_SIZES[kind]
    rows, blocks = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    packed = np.frombuffer(data.draw(st.binary(min_size=rows * blocks * block_bytes, max_size=4000)), np.uint8)
    packed = finite(packed[: rows * blocks * block_bytes].reshape(rows, blocks, block_bytes), kind)
    found = unpacked(packed.reshape(-1), rows, kind)
    np.testing.assert_array_equal(found.rows(slice(None)), gguf.dequantize(packed.reshape(rows, -1), kind))
    assert found.form == FORMS[kind]
    assert found.codes.max() < (found.form.levels or 1 << found.form.bits)


@pytest.mark.parametrize("kind", sorted(FORMS), ids=lambda kind: kind.name)
def test_dequantized_bytes_never_change(kind: GGMLQuantizationType) -> None:
    values = unpacked(fixed_bytes(kind).reshape(-1), 8, kind).rows(slice(None)) + np.float32(0)  # no -0
    assert hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()[:16] == HASHES[kind.name]


def fixed_bytes(kind: GGMLQuantizationType) -> np.ndarray:
    """Make the bytes of 8 rows of 512 weights."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    count = 8 * 512 // block
    packed = (np.arange(count * block_bytes, dtype=np.uint64) * 2654435761 >> np.uint64(13)).astype(np.uint8)
    return finite(packed.reshape(8, -1, block_bytes), kind)


def finite(packed: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Copy blocks without some bits of each exponent, so that all numbers are finite."""
    packed = packed.copy()
    for start in HALVES[kind]:
        packed[..., start + 1] &= 0xBB
    if kind == GGMLQuantizationType.MXFP4:
        packed[..., 0] &= 0x7F
    return packed
