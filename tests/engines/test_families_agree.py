"""Every engine has the logits of the reference for each family that it supports, and at every cut its own bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cluster.shard import whole
from engines.engine import Chunk, FloatArray
from engines.errors import EngineError
from engines.numpy.engine import NumpyEngine
from engines.onnx.engine import OnnxEngine
from engines.registry import create
from engines.tinygrad.engine import TinygradEngine
from models.architecture import Architecture, Attention, Experts, Layer, Mlp, Rope, Yarn
from models.families import FAMILIES
from models.weights.reader import open_weights
from tests.support.engines import Forwards, cut, numpy_engine
from tests.support.family_models import (
    CONFIGS,
    VOCABULARY,
    DescribedWeights,
    tiny_architecture,
    write_family_folder,
    write_family_gguf,
)

TOLERANCE = 2e-5
IDS = np.random.default_rng(2).integers(0, VOCABULARY, 40).tolist()
PIECES = (IDS[:21], IDS[21:22], IDS[22:23], IDS[23:])
WITH_EXPERTS = ("qwen3_moe", "qwen3_moe with a dense layer", "gpt_oss")
DENSE = [name for name in CONFIGS if name not in WITH_EXPERTS]


def logits_of(stages: Sequence[Forwards], pieces: Sequence[Sequence[int]]) -> FloatArray:
    """Run pieces of a text one after another through a ring. Returns the logits (ids, vocab) of all."""
    outputs, position = [], 0
    for piece in pieces:
        inputs: np.ndarray = np.array(piece, np.int32)
        for stage in stages:
            inputs = stage.forward([Chunk(0, position, inputs, len(piece))])[0]
        outputs.append(inputs)
        position += len(piece)
    for stage in stages:
        stage.release(0)
    return np.concatenate(outputs)


def onnx_ring(path: Path, *cuts: int) -> list[OnnxEngine]:
    stages = []
    weights = open_weights(path)
    for shard in cut("tiny", weights.architecture.n_layers, *cuts):
        stages.append(OnnxEngine("exact"))
        stages[-1].read(shard, weights)
    return stages


def write_family(folder: Path, name: str) -> Path:
    """Write a family in a form that exobus reads."""
    gguf_only = FAMILIES[tiny_architecture(name).family].gguf_only
    return write_family_gguf(folder / "tiny.gguf", name) if gguf_only else write_family_folder(folder / "model", name)


@pytest.mark.parametrize("name", CONFIGS)
def test_onnx_has_the_logits_of_the_reference(name: str, tmp_path: Path) -> None:
    path = write_family(tmp_path, name)
    expected = logits_of([numpy_engine(path, whole(name, tiny_architecture(name).n_layers))], PIECES)
    np.testing.assert_allclose(logits_of(onnx_ring(path), PIECES), expected, atol=TOLERANCE)


@pytest.mark.parametrize("name", CONFIGS)
def test_onnx_has_the_same_bits_at_every_cut(name: str, tmp_path: Path) -> None:
    path = write_family(tmp_path, name)
    unsplit = logits_of(onnx_ring(path), PIECES)
    every_cut = range(1, tiny_architecture(name).n_layers)
    np.testing.assert_array_equal(logits_of(onnx_ring(path, *every_cut), PIECES), unsplit)


@pytest.mark.parametrize("name", DENSE)
def test_rows_of_a_chunk_have_their_bits_alone_in_onnx(name: str, tmp_path: Path) -> None:
    (engine,) = onnx_ring(write_family_folder(tmp_path / "model", name))
    assert engine.exact_rows > 9
    together = logits_of([engine], [IDS[:30], IDS[30:39]])
    alone = logits_of([engine], [IDS[:30], *([token] for token in IDS[30:39])])
    np.testing.assert_array_equal(together, alone)


def everything() -> Architecture:
    """Describe a model with two layers that have all that a dense one may have."""
    near = Attention(
        heads=4,
        kv_heads=2,
        head_dim=32,
        scale=0.2,
        rope=Rope(10000.0, 16, Yarn(4.0, 64, 32.0, 1.0, 1.2, False)),
        window=8,
        qkv_bias=True,
        out_bias=True,
        qk_norm=True,
        sinks=True,
        softcap=4.0,
    )
    far = msgspec.structs.replace(near, rope=None, window=None)
    return Architecture(
        family="llama",
        layers=(Layer(near, Mlp(48, "gelu_tanh", True), True), Layer(far, Mlp(48, "silu", True))),
        hidden_size=64,
        vocab_size=VOCABULARY,
        context_length=128,
        norm_eps=1e-5,
        norm_offset=1.0,
        embedding_scale=3.0,
        residual_scale=0.5,
        logit_scale=2.0,
        logit_softcap=5.0,
    )


@pytest.mark.parametrize("name", ["onnx", "tinygrad"])
def test_all_of_a_description_matches_the_reference(name: str) -> None:
    ours, reference = create(name, "exact"), NumpyEngine()
    for engine in (ours, reference):
        engine.read(whole("everything", 2), DescribedWeights(everything()))
    prompt = [IDS[:20]]  # tinygrad compiles each number of rows, which takes seconds
    np.testing.assert_allclose(logits_of([ours], prompt), logits_of([reference], prompt), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("feed_forward", "reason"),
    [
        (Mlp(32, "clipped_swiglu"), "has clipped_swiglu in experts only"),
        (Experts(4, 2, Mlp(32, "gelu_tanh")), "has no experts with GELU"),
    ],
)
def test_feed_forward_network_that_onnx_lacks_is_refused(feed_forward: Mlp | Experts, reason: str) -> None:
    plain = tiny_architecture("qwen3")
    layers = tuple(msgspec.structs.replace(layer, feed_forward=feed_forward) for layer in plain.layers)
    architecture = msgspec.structs.replace(plain, layers=layers)
    with pytest.raises(EngineError, match=f"^the onnx engine {reason}; try numpy$"):
        OnnxEngine().read(whole("refused", architecture.n_layers), DescribedWeights(architecture))


@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_onnx_promises_no_exact_rows_of_experts(name: str, tmp_path: Path) -> None:
    (engine,) = onnx_ring(write_family(tmp_path, name))
    assert engine.exact_rows == 1


@pytest.mark.parametrize("name", ["qwen3_moe with a dense layer", "gpt_oss"])
def test_tinygrad_matches_the_reference_at_every_cut(name: str) -> None:
    """On two layers, the one of each kind, since tinygrad compiles for each engine, which takes seconds."""
    architecture = tiny_architecture(name)
    weights = DescribedWeights(msgspec.structs.replace(architecture, layers=architecture.layers[:2]))

    def logits(kind: type[NumpyEngine | TinygradEngine], *cuts: int) -> FloatArray:
        stages = []
        for shard in cut("tiny", 2, *cuts):
            stages.append(kind())
            stages[-1].read(shard, weights)
        return logits_of(stages, PIECES[:2])

    unsplit = logits(TinygradEngine)
    np.testing.assert_allclose(unsplit, logits(NumpyEngine), atol=TOLERANCE)
    np.testing.assert_array_equal(logits(TinygradEngine, 1), unsplit)
