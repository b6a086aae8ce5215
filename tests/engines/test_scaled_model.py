"""The small model that is measured for a large one has its types and shapes, in proportion, and engines load it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from cluster.shard import whole
from engines import scaled_model
from engines.engine import Chunk
from engines.registry import create
from engines.scaled_model import LEAST_BYTES, measured_layers, write_scaled
from models.weights.gguf.header import GgufHeader, GgufTensor, read_header
from models.weights.gguf.tensors import read_tensor
from tests.support.gguf_models import FAMILIES, VOCAB, write_model


@pytest.fixture
def two_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure two layers, of tiny models as well."""
    monkeypatch.setattr(scaled_model, "LEAST_BYTES", 0)


def header_of(layers: int, layer_bytes: int) -> GgufHeader:
    tensor = GgufTensor(kind=GGMLQuantizationType.Q4_0, shape=(1,), offset=0, nbytes=layer_bytes)
    tensors = {f"blk.{layer}.ffn_up.weight": tensor for layer in range(layers)}
    return GgufHeader({"general.architecture": "llama", "llama.block_count": layers}, tensors)


@pytest.mark.parametrize(
    ("layers", "layer_bytes", "expected"),
    [
        (16, 50 << 20, [4, 12]),
        (80, 500 << 20, [20, 60]),
        (1, 500 << 20, [0]),
        (8, LEAST_BYTES // 4, [1, 3, 5, 7]),
        (4, 1000, [0, 1, 2, 3]),
    ],
)
def test_layers_are_spread_and_larger_than_a_cache(layers: int, layer_bytes: int, expected: list[int]) -> None:
    assert measured_layers(header_of(layers, layer_bytes)) == expected


@pytest.mark.usefixtures("two_layers")
def test_tensors_keep_types_and_lose_contents(tmp_path: Path) -> None:
    source, small = write_model(tmp_path / "model.gguf", "llama", "Q8_0"), tmp_path / "small.gguf"
    whole_header = read_header(source)
    assert write_scaled(small, source, whole_header) == (2, 2.5)
    header = read_header(small)
    assert header.tensors["token_embd.weight"].shape[0] == VOCAB * 2 // 5
    for ours, theirs in (
        ("blk.0.ffn_up.weight", "blk.1.ffn_up.weight"),
        ("blk.1.attn_q.weight", "blk.3.attn_q.weight"),
    ):
        kept, original = header.tensors[ours], whole_header.tensors[theirs]
        assert (kept.kind, kept.shape) == (original.kind, original.shape)
        assert not read_tensor(small, kept).any()
    ours, theirs = "blk.1.attn_norm.weight", "blk.3.attn_norm.weight"
    norm = read_tensor(small, header.tensors[ours])
    np.testing.assert_array_equal(norm, read_tensor(source, whole_header.tensors[theirs]))


@pytest.mark.usefixtures("two_layers")
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt-oss", "qwen3moe"])
def test_engines_run_the_small_model(family: str, tmp_path: Path) -> None:
    source, small = write_model(tmp_path / "model.gguf", family, "Q8_0"), tmp_path / "small.gguf"
    scaled = write_scaled(small, source, read_header(source))
    assert scaled.scale == FAMILIES[family].n_layers / 2
    for name in ("llamacpp", "numpy"):
        engine = create(name)
        engine.load(whole("small", scaled.n_layers), small)
        logits = engine.forward([Chunk(0, 0, np.zeros(3, np.int32), 1)])[0]
        engine.close()
        assert logits.shape[0] == 1
        assert np.isfinite(logits).all()
