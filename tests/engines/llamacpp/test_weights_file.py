"""A shard that is loaded from open weights computes what the reference does."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from cluster.shard import Shard, whole
from engines.engine import Chunk
from engines.errors import EngineError
from engines.llamacpp.engine import LlamaCppEngine
from engines.llamacpp.weights_file import write_weights
from engines.probe import SETTINGS, SHARD
from engines.random_weights import RandomWeights
from models.weights.gguf.header import read_header
from models.weights.gguf.tensors import read_tensor
from models.weights.reader import open_weights
from tests.support.engines import numpy_engine
from tests.support.models import write_tiny_llama

MIDDLE = Shard("tiny", 1, 3, 4)


def test_hidden_states_match_the_reference(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny", attention_bias=True)
    rows = np.random.default_rng(0).standard_normal((12, 64), np.float32)
    engine, reference = LlamaCppEngine(), numpy_engine(path, MIDDLE)
    weights = open_weights(path)
    engine.read(MIDDLE, weights)
    (ours,), (theirs,) = (one.forward([Chunk(0, 0, rows)]) for one in (engine, reference))
    engine.close()
    np.testing.assert_allclose(ours, theirs, atol=1e-2)


def test_quantized_blocks_are_stored_as_they_are(tmp_path: Path) -> None:
    weights = RandomWeights(SETTINGS)
    write_weights(tmp_path / "shard.gguf", weights, SHARD)
    stored = read_header(tmp_path / "shard.gguf").tensors["blk.2.ffn_down.weight"]
    assert stored.kind == gguf.GGMLQuantizationType.Q4_1
    expected = weights.tensor("model.layers.3.mlp.down_proj.weight")
    found = read_tensor(tmp_path / "shard.gguf", stored)
    np.testing.assert_allclose(found, expected, atol=np.abs(expected).max() * 2**-10)


@pytest.mark.parametrize("shard", [whole("tiny", 4), Shard("tiny", 0, 2, 4), Shard("tiny", 2, 4, 4)])
def test_shard_with_an_end_is_refused(shard: Shard, tmp_path: Path) -> None:
    weights = open_weights(write_tiny_llama(tmp_path))
    with pytest.raises(EngineError, match="reads GGUF files by their paths; try mlx or onnx"):
        LlamaCppEngine().read(shard, weights)
