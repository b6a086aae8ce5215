"""An engine that says that it is invariant gives a row the same bits, whatever else is in its pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from cluster.shard import whole
from engines.errors import EngineError
from engines.onnx.engine import OnnxEngine
from engines.onnx.row_check import fewest_rows
from engines.registry import create
from engines.settings import ENGINES
from tests.support.engines import Forwards, cut
from tests.support.invariance import decoded, in_company
from tests.support.models import default_model_path, write_tiny_gguf, write_tiny_llama

LENGTHS = {0: 37, 1: 9, 2: 64, 5: 20, 7: 18}
"""Tokens of the prompts, by slot: the slots have gaps between them."""


def prompts(vocabulary: int, *slots: int) -> dict[int, list[int]]:
    random = np.random.default_rng(4)
    return {slot: random.integers(3, vocabulary, LENGTHS[slot]).tolist() for slot in slots or LENGTHS}


def assert_invariant(stages: Sequence[Forwards], prompts: Mapping[int, Sequence[int]]) -> None:
    alone = {slot: decoded(stages, {slot: prompt})[slot] for slot, prompt in prompts.items()}
    for case, rows in in_company(stages, prompts):
        for slot, row in rows.items():
            np.testing.assert_array_equal(row, alone[slot], err_msg=f"slot {slot}, {case}")


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
    assert_invariant([engine], prompts(40_000, 1, 5, 7))


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "onnx"])
def test_engine_that_is_not_invariant_is_refused(name: str) -> None:
    with pytest.raises(EngineError, match=f"engine {name} is not invariant; choose engine onnx or another precision"):
        create(name, "invariant")


@pytest.mark.parametrize("bits", [4, 8])
def test_fewest_rows_are_one_or_two(bits: int) -> None:
    assert fewest_rows(bits) in (1, 2)
