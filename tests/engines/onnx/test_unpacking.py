"""Matrices are unpacked to the same arrays, in whatever pieces and threads."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from engines.onnx.unpacking import unpack
from models.weights.gguf.packed_matrix import PackedMatrix
from models.weights.quantized import BlockForm, QuantizedMatrix

COLUMNS = 512


def random_matrix(kind: GGMLQuantizationType, rows: int, order: np.ndarray | None = None) -> PackedMatrix:
    block, block_bytes = GGML_QUANT_SIZES[kind]
    packed = np.random.default_rng(rows).integers(0, 0x30, (rows, COLUMNS // block * block_bytes), np.uint8)
    return PackedMatrix(packed, kind, order)


def unpacked_arrays(matrices: list[PackedMatrix]) -> list[np.ndarray]:
    form = matrices[0].form
    shape = sum(matrix.shape[0] for matrix in matrices), COLUMNS // form.block
    codes = np.zeros((*shape, form.block * form.bits // 8), np.uint8)
    scales, rest = np.zeros((2, *shape), np.float32)
    unpack(matrices, codes, scales, rest)
    return [codes, scales, rest]


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_K", "Q6_K"])
def test_pieces_and_threads_change_no_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    number = GGMLQuantizationType[kind]
    matrices = [random_matrix(number, 24, np.arange(24)[::-1]), random_matrix(number, 7)]
    whole = unpacked_arrays(matrices)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr("engines.onnx.unpacking.PIECE", 5 * COLUMNS)
    for found, expected in zip(unpacked_arrays(matrices), whole, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_codes_lie_in_pairs_with_the_first_one_low() -> None:
    codes = np.arange(32, dtype=np.uint8).reshape(1, 32) % 16
    ones = np.ones((1, 1), np.float32)
    found = np.zeros((1, 1, 16), np.uint8)
    unpack([QuantizedMatrix(codes, ones, -8 * ones, BlockForm(4, 32, 8))], found, np.zeros((1, 1), np.float32))
    assert bytes(found[0, 0, :8]).hex() == "1032547698badcfe"


def test_damaged_piece_raises_from_its_thread() -> None:
    short = PackedMatrix(np.zeros((4, 19), np.uint8), GGMLQuantizationType.Q4_0)
    with pytest.raises(ValueError, match="reshape"):
        unpack([short], np.zeros((4, 1, 16), np.uint8), np.zeros((4, 1), np.float32))
