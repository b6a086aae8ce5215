"""Quantized blocks are the file's own numbers: dequantized they are the tensor, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.errors import WeightsError
from models.weights.quantized import QuantizedMatrix
from models.weights.reader import open_weights
from tests.support.models import default_model_path, write_tiny_gguf, write_tiny_llama

MATRICES = [f"model.layers.2.{part}.weight" for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")]


@pytest.mark.parametrize("quantization", ["Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", *MATRICES])
def test_blocks_of_a_file_equal_its_tensors(quantization: str, name: str, tmp_path: Path) -> None:
    weights = open_weights(write_tiny_gguf(tmp_path / "tiny.gguf", quantization=quantization))
    blocks = weights.blocks(name)
    assert blocks is not None
    assert (blocks.bits, blocks.block) == (8 if quantization == "Q8_0" else 4, 32)
    np.testing.assert_array_equal(blocks.rows(slice(None)), weights.tensor(name))


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", *MATRICES])
def test_blocks_of_the_default_model_equal_its_tensors(name: str) -> None:
    weights = open_weights(default_model_path())
    blocks = weights.blocks(name)
    assert blocks is not None
    assert blocks.codes.max() < 1 << blocks.bits
    np.testing.assert_array_equal(blocks.rows(slice(None)), weights.tensor(name))


def test_selected_rows_match_the_whole_matrix() -> None:
    weights = open_weights(default_model_path())
    blocks = weights.blocks("model.embed_tokens.weight")
    assert blocks is not None
    picked = np.array([49151, 0, 7, 7])
    np.testing.assert_array_equal(blocks.rows(picked), weights.tensor("model.embed_tokens.weight")[picked])


def test_stacking_concatenates_the_rows() -> None:
    weights = open_weights(default_model_path())
    parts = [weights.blocks(f"model.layers.0.mlp.{part}_proj.weight") for part in ("gate", "up")]
    known = [part for part in parts if part is not None]
    rows = np.concatenate([part.rows(slice(None)) for part in known])
    np.testing.assert_array_equal(QuantizedMatrix.stacked(known).rows(slice(None)), rows)


def test_unquantized_tensors_have_no_blocks(tmp_path: Path) -> None:
    half = write_tiny_gguf(tmp_path / "half.gguf", quantization="F16")
    for path in (half, write_tiny_llama(tmp_path / "folder")):
        weights = open_weights(path)
        assert weights.blocks(MATRICES[0]) is None


def test_blocks_of_an_unknown_name_are_rejected(tmp_path: Path) -> None:
    weights = open_weights(write_tiny_gguf(tmp_path / "tiny.gguf"))
    with pytest.raises(WeightsError, match=r"holds no tensor model\.layers\.9"):
        weights.blocks("model.layers.9.mlp.up_proj.weight")
