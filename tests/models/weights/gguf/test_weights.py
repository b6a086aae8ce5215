"""A GGUF file gives the tensors of the checkpoint it was made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import MODEL_ARCH, GGMLQuantizationType

from models.weights.gguf.header import GgufTensor
from models.weights.gguf.weights import by_checkpoint_name
from models.weights.reader import open_weights
from tests.support.family_models import write_family_gguf
from tests.support.models import TinyShape, write_tiny_gguf, write_tiny_llama


def test_gguf_equals_the_checkpoint_of_the_same_weights(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "folder", tie=False)
    path = write_tiny_gguf(tmp_path / "tiny.gguf", tie=False)
    expected = open_weights(folder)
    found = open_weights(path)
    assert found.names() == expected.names()
    for name in expected.names():
        np.testing.assert_array_equal(found.tensor(name), expected.tensor(name))
        assert found.tensor(name).flags.c_contiguous
    assert found.architecture == expected.architecture


@pytest.mark.parametrize(("kind", "error"), [("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 2e-2), ("Q4_1", 0.3)])
def test_quantized_weights_are_close_to_the_checkpoint(tmp_path: Path, kind: str, error: float) -> None:
    tensors = TinyShape().tensors()
    weights = open_weights(write_tiny_gguf(tmp_path / "tiny.gguf", quantization=kind))
    for name, tensor in tensors.items():
        np.testing.assert_allclose(weights.tensor(name), tensor, atol=error)


@pytest.mark.parametrize(("kind", "error"), [("Q8_0", 3e-3), ("MXFP4", 0.2)])
def test_quantized_experts_are_close_to_the_checkpoint(tmp_path: Path, kind: str, error: float) -> None:
    name = "model.layers.1.mlp.experts.down_proj.weight"
    quantized = write_family_gguf(tmp_path / "quantized.gguf", "gpt_oss", GGMLQuantizationType[kind])
    weights = open_weights(quantized)
    exact = open_weights(write_family_gguf(tmp_path / "tiny.gguf", "gpt_oss"))
    assert weights.blocks(name) is None
    assert 0 < np.abs(weights.tensor(name) - exact.tensor(name)).max() < error


def test_gguf_names_map_to_checkpoint_names() -> None:
    pairs = {
        "model.layers.12.mlp.experts.gate_proj.weight": "blk.12.ffn_gate_exps.weight",
        "model.layers.3.self_attn.q_proj.bias": "blk.3.attn_q.bias",
        "model.layers.3.self_attn.sinks": "blk.3.attn_sinks.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    tensors = {
        name: GgufTensor(kind=GGMLQuantizationType.F32, shape=(index,), offset=0, nbytes=4 * index)
        for index, name in enumerate((*pairs.values(), "rope_freqs.weight"))
    }
    found = by_checkpoint_name(MODEL_ARCH.GPT_OSS, (*pairs, "model.layers.3.mlp.experts.up_proj.weight"), tensors)
    assert found == {name: tensors[stored] for name, stored in pairs.items()}
