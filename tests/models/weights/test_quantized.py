"""Quantized blocks are the file's own numbers: dequantized they are the tensor, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.errors import WeightsError
from models.weights.reader import open_weights
from tests.support.models import default_model_path, write_tiny_gguf, write_tiny_llama

MATRICES = [f"model.layers.2.{part}.weight" for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")]


@pytest.mark.parametrize("quantization", ["Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", *MATRICES])
def test_blocks_of_a_file_equal_its_tensors(quantization: str, name: str, tmp_path: Path) -> None:
    weights = open_weights(write_tiny_gguf(tmp_path / "tiny.gguf", quantization=quantization))
    blocks = weights.blocks(name)
    assert blocks is not None
    assert (blocks.form.bits, blocks.form.block) == (8 if quantization == "Q8_0" else 4, 32)
    np.testing.assert_array_equal(blocks.rows(slice(None)), weights.tensor(name))


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", *MATRICES])
def test_blocks_of_the_default_model_equal_its_tensors(name: str) -> None:
    weights = open_weights(default_model_path())
    blocks = weights.blocks(name)
    assert blocks is not None
    assert blocks.part(slice(None)).codes.max() < 1 << blocks.form.bits
    np.testing.assert_array_equal(blocks.rows(slice(None)), weights.tensor(name))


def test_selected_rows_match_the_whole_matrix() -> None:
    weights = open_weights(default_model_path())
    blocks = weights.blocks("model.embed_tokens.weight")
    assert blocks is not None
    picked = np.array([49151, 0, 7, 7])
    np.testing.assert_array_equal(blocks.rows(picked), weights.tensor("model.embed_tokens.weight")[picked])


@pytest.mark.parametrize("name", MATRICES)
def test_parts_have_the_rows_of_the_matrix(name: str) -> None:
    weights = open_weights(default_model_path())
    blocks = weights.blocks(name)
    assert blocks is not None
    assert blocks.shape == weights.tensor(name).shape
    np.testing.assert_array_equal(blocks.part(slice(5, 70)).rows(slice(None)), weights.tensor(name)[5:70])


def test_unquantized_tensors_have_no_blocks(tmp_path: Path) -> None:
    half = write_tiny_gguf(tmp_path / "half.gguf", quantization="F16")
    for path in (half, write_tiny_llama(tmp_path / "folder")):
        weights = open_weights(path)
        assert weights.blocks(MATRICES[0]) is None


def test_blocks_of_an_unknown_name_are_rejected(tmp_path: Path) -> None:
    weights = open_weights(write_tiny_gguf(tmp_path / "tiny.gguf"))
    with pytest.raises(WeightsError, match=r"holds no tensor model\.layers\.9"):
        weights.blocks("model.layers.9.mlp.up_proj.weight")


def test_matrix_of_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", quantization="Q8_0")
    weights = open_weights(path)
    with path.open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(WeightsError, match="cut short"):
        weights.blocks(MATRICES[0])


def test_mapped_matrix_outlives_its_file(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", quantization="Q8_0")
    weights = open_weights(path)
    expected, blocks = weights.tensor(MATRICES[0]), weights.blocks(MATRICES[0])
    path.unlink()
    assert blocks is not None
    np.testing.assert_array_equal(blocks.rows(slice(None)), expected)
