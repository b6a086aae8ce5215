"""An invariant llama.cpp gives each slot a context of its own, so no other slot changes a bit of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from engines.engine import Chunk
from engines.llamacpp.engine import LlamaCppEngine
from engines.llamacpp.shard_model import GROWTH
from tests.support.engines import cut
from tests.support.gguf_models import FAMILIES, VOCAB, write_model
from tests.support.invariance import assert_invariant, decoded, in_company

PROMPTS = {
    slot: np.random.default_rng(slot).integers(0, VOCAB, length).tolist()
    for slot, length in {0: 70, 1: 9, 3: GROWTH + 40}.items()
}


@pytest.fixture(autouse=True)
def cache(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXOBUS_CACHE", str(models))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def stages_of(path: Path, family: str, *cuts: int, invariant: bool = True) -> list[LlamaCppEngine]:
    stages = []
    for shard in cut("model", FAMILIES[family].n_layers, *cuts):
        stages.append(LlamaCppEngine(invariant=invariant))
        stages[-1].load(shard, path)
    return stages


@pytest.mark.parametrize("cuts", [(), (2,)], ids=str)
def test_rows_have_the_same_bits_in_company(cuts: Sequence[int], llama: Path) -> None:
    assert_invariant(stages_of(llama, "llama", *cuts), PROMPTS, cuts=(32, 96))


def test_rows_on_two_threads_have_the_same_bits_in_company(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    stages = stages_of(llama, "llama", 1)[:1]
    alone = decoded(stages, {3: PROMPTS[3]}, rows=544)
    np.testing.assert_array_equal(decoded(stages, {1: PROMPTS[1], 3: PROMPTS[3]})[3], alone[3])


def test_windows_stay_as_they_are_when_a_context_grows(tmp_path: Path) -> None:
    stages = stages_of(write_model(tmp_path / "model.gguf", "gemma3", "Q8_0"), "gemma3")
    assert_invariant(stages, {slot: PROMPTS[slot] for slot in (1, 3)}, cuts=())


def test_shared_context_changes_bits(llama: Path) -> None:
    stages = stages_of(llama, "llama", invariant=False)
    alone = {slot: decoded(stages, {slot: prompt})[slot] for slot, prompt in PROMPTS.items()}
    cases = in_company(stages, PROMPTS, (32,))
    assert any(rows[slot].tobytes() != alone[slot].tobytes() for _, rows in cases for slot in rows)


def test_slots_are_freed_and_made_again(llama: Path) -> None:
    (engine,) = stages_of(llama, "llama")
    ids = np.array(PROMPTS[0], np.int32)
    first = [engine.forward([Chunk(slot, 0, ids, 1)])[0] for slot in range(3)]
    for slot in range(3):
        engine.release(slot)
    again = engine.forward([Chunk(0, 0, ids, 1)])[0]
    engine.close()
    np.testing.assert_array_equal([again] * 3, first)
