"""An engine that says that it is invariant gives a row the same bits, whatever else is in its pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cluster.shard import whole
from engines.onnx.engine import OnnxEngine
from engines.onnx.row_check import fewest_rows
from engines.registry import create
from tests.support.engines import EngineProcess, cut
from tests.support.family_models import tiny_architecture, write_family_folder
from tests.support.invariance import assert_invariant
from tests.support.models import default_model_path, write_tiny_gguf, write_tiny_llama

LENGTHS = {0: 37, 1: 9, 2: 66, 5: 20, 7: 18}
"""Tokens of the prompts, by slot: the slots have gaps between them."""


def prompts(vocabulary: int, *slots: int) -> dict[int, list[int]]:
    random = np.random.default_rng(4)
    return {slot: random.integers(3, vocabulary, LENGTHS[slot]).tolist() for slot in slots or LENGTHS}


@pytest.mark.parametrize("cuts", [(), (1,)], ids=str)
@pytest.mark.parametrize("quantization", ["Q4_0", "Q4_1", "Q8_0"])
def test_quantized_rows_have_the_same_bits_in_company(quantization: str, cuts: Sequence[int], tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", quantization=quantization)
    stages = [OnnxEngine("invariant") for _ in range(len(cuts) + 1)]
    for stage, shard in zip(stages, cut("tiny", 4, *cuts), strict=True):
        stage.load(shard, path)
    assert_invariant(stages, prompts(250))


def test_float_rows_have_the_same_bits_in_company(tmp_path: Path) -> None:
    engine = OnnxEngine("invariant")
    engine.load(whole("tiny", 4), write_tiny_llama(tmp_path))
    assert_invariant([engine], prompts(250))


@pytest.mark.timeout(300)
def test_default_model_has_the_same_bits_in_company() -> None:
    engine = OnnxEngine("invariant")
    engine.load(whole("default", 30), default_model_path())
    assert (engine.invariant, engine.exact_rows) == (True, 1)
    assert_invariant([engine], prompts(40_000, 1, 5, 7), cuts=(2, 17))


@pytest.mark.parametrize("name", ["mlx", "tinygrad", "numpy"])
def test_lone_passes_have_the_same_bits_in_company(name: str, process: EngineProcess, tmp_path: Path) -> None:
    engine = process.load(name, whole("tiny", 1), write_tiny_llama(tmp_path, n_layers=1), "invariant")
    assert_invariant([engine], prompts(250, 0, 1), cuts=(32,))
    engine.close()


def test_rows_of_experts_have_the_same_bits_in_company(tmp_path: Path) -> None:
    engine, architecture = create("onnx", "invariant"), tiny_architecture("qwen3_moe")
    engine.load(whole("experts", architecture.n_layers), write_family_folder(tmp_path / "model", "qwen3_moe"))
    assert (engine.invariant, engine.exact_rows) == (True, 1)
    assert_invariant([engine], prompts(architecture.vocab_size, 0, 1, 2), cuts=(32, 96))


@pytest.mark.parametrize("bits", [4, 8])
def test_fewest_rows_are_one_or_two(bits: int) -> None:
    assert fewest_rows(bits) in (1, 2)
