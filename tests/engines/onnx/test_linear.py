"""Products with quantized matrices are those of the dequantized ones, but for the rounding of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from engines.engine import FloatArray
from engines.onnx.graph import Graph
from engines.onnx.linear import float_product, linear, quantized_product
from engines.onnx.shard_model import new_session
from models.weights.gguf.blocks import FORMS, unpacked
from models.weights.quantized import BlockForm, BlockMatrix, QuantizedMatrix
from models.weights.reader import Weights, open_weights
from tests.support.models import HALVES, write_tiny_gguf

TOLERANCE = 2e-5


def test_large_matrix_is_split_into_several_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.onnx.linear.MAX_WEIGHT_BYTES", 1000)
    graph = Graph()
    matrix = np.random.default_rng(1).random((51, 16), np.float32)
    result = float_product(graph, graph.input("rows", np.float32, ("rows", 16)), matrix)
    graph.nodes("Identity", result, outputs=[graph.output("output", ("rows", 51))])
    rows = np.random.default_rng(2).random((3, 16), np.float32)
    found = new_session(graph).run(["output"], {"rows": rows})[0]
    assert len(graph.weights) == 4
    np.testing.assert_allclose(found, rows @ matrix.T, rtol=1e-5)


@pytest.mark.parametrize("quantization", ["Q4_0", "Q4_1", "Q8_0"])
def test_fast_product_differs_only_by_row_rounding(quantization: str, tmp_path: Path) -> None:
    names = [f"model.layers.1.self_attn.{part}_proj" for part in "qkv"]
    rows = np.random.default_rng(3).standard_normal((5, 64), np.float32)
    weights = open_weights(write_tiny_gguf(tmp_path / "tiny.gguf", quantization=quantization))
    found = product(weights, rows, names)
    expected = rows @ np.concatenate([weights.tensor(f"{name}.weight") for name in names]).T
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 1e-4 < error < 0.01


@pytest.mark.parametrize("kind", sorted(FORMS), ids=lambda kind: kind.name)
def test_every_quantization_multiplies_like_its_tensor(kind: GGMLQuantizationType) -> None:
    blocks = random_blocks(kind)
    rows = np.random.default_rng(3).standard_normal((5, 256), np.float32)
    graph = Graph()
    result = quantized_product(graph, graph.input("rows", np.float32, ("rows", 256)), [blocks])
    graph.nodes("Identity", result, outputs=[graph.output("output", ("rows", "outputs"))])
    found = new_session(graph).run(["output"], {"rows": rows})[0]
    expected = rows @ blocks.rows(slice(None)).T
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.01


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [96, 128, 160])
def test_product_supports_any_number_of_blocks(columns: int, bits: int) -> None:
    random = np.random.default_rng(7)
    codes = random.integers(0, 1 << bits, (24, columns), np.uint8)
    scales, minimums = random.standard_normal((2, 24, columns // 32), np.float32) / 10
    blocks = QuantizedMatrix(codes, scales, minimums, BlockForm(bits, 32, None))
    rows = random.standard_normal((5, columns), np.float32)
    graph = Graph()
    result = quantized_product(graph, graph.input("rows", np.float32, ("rows", columns)), [blocks])
    graph.nodes("Identity", result, outputs=[graph.output("output", ("rows", "outputs"))])
    found = new_session(graph).run(["output"], {"rows": rows})[0]
    expected = rows @ blocks.rows(slice(None)).T
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.01


def test_product_joins_matrices_of_different_forms(tmp_path: Path) -> None:
    names = [f"model.layers.1.self_attn.{part}_proj" for part in "qkv"]
    rows = np.random.default_rng(3).standard_normal((5, 64), np.float32)
    weights = ThreeFiles(tmp_path)
    found = product(weights, rows, names)
    expected = rows @ np.concatenate([weights.tensor(f"{name}.weight") for name in names]).T
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.01
    np.testing.assert_allclose(found[:, 96:], expected[:, 96:], atol=TOLERANCE)


def random_blocks(kind: GGMLQuantizationType) -> QuantizedMatrix:
    """Make 24 rows of 256 weights from random bytes, with scales of similar size."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    packed = np.random.default_rng(5).integers(0, 256, (24, 256 // block, block_bytes), np.uint8)
    for start in HALVES[kind]:
        packed[..., start + 1] = packed[..., start + 1] & 3 | 0x28
    if kind == GGMLQuantizationType.MXFP4:
        packed[..., 0] = packed[..., 0] & 3 | 0x78
    return unpacked(packed.reshape(-1), 24, kind)


class ThreeFiles:
    """Weights as some files mix them: q has four bits, k eight, and v is float32."""

    repository = None

    def __init__(self, folder: Path) -> None:
        kinds = {"q_proj": "Q4_1", "k_proj": "Q8_0", "v_proj": "F32"}
        self._parts = {
            part: open_weights(write_tiny_gguf(folder / f"{kind}.gguf", quantization=kind))
            for part, kind in kinds.items()
        }
        self.architecture, self.settings = self._parts["q_proj"].architecture, self._parts["q_proj"].settings

    def names(self) -> frozenset[str]:
        return self._parts["q_proj"].names()

    def tensor(self, name: str) -> np.ndarray:
        return self._of(name).tensor(name)

    def blocks(self, name: str) -> BlockMatrix | None:
        return self._of(name).blocks(name)

    def form(self, name: str) -> BlockForm | None:
        return self._of(name).form(name)

    def _of(self, name: str) -> Weights:
        return self._parts[name.split(".")[-2]]


def product(weights: Weights, rows: FloatArray, names: Sequence[str]) -> FloatArray:
    """Multiply (rows, 64) with the named matrices in precision `fast`."""
    graph = Graph()
    result = linear(graph, graph.input("rows", np.float32, ("rows", 64)), weights, "fast", *names)
    graph.nodes("Identity", result, outputs=[graph.output("output", ("rows", "outputs"))])
    return np.asarray(new_session(graph).run(["output"], {"rows": rows})[0])
