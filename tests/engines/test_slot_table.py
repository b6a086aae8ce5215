"""A chunk has to continue its slot and fit its stage, or it is rejected and no slot changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.shard import Shard, whole
from engines.engine import Chunk
from engines.errors import EngineError
from engines.numpy.engine import NumpyEngine
from engines.settings import MAX_SLOTS
from tests.support.engines import numpy_engine, tokens

TINY = whole("tiny", 4)


@pytest.mark.parametrize("position", [0, 2, 4])
def test_position_gap_changes_no_slot(engine: NumpyEngine, position: int) -> None:
    engine.forward([tokens(0, 0, [1, 2, 3])])
    with pytest.raises(EngineError, match=f"holds 3 positions but a chunk came for position {position}"):
        engine.forward([tokens(1, 0, [5]), tokens(0, position, [4])])
    engine.forward([tokens(0, 3, [4]), tokens(1, 0, [5])])


def test_new_slot_must_start_at_zero(engine: NumpyEngine) -> None:
    with pytest.raises(EngineError, match="holds 0 positions"):
        engine.forward([tokens(6, 3, [1])])


def test_slot_twice_in_one_batch_is_rejected(engine: NumpyEngine) -> None:
    with pytest.raises(EngineError, match="twice in one batch"):
        engine.forward([tokens(0, 0, [1]), tokens(0, 1, [2])])


def test_chunk_beyond_the_context_is_rejected(engine: NumpyEngine) -> None:
    engine.forward([tokens(0, 0, [1] * 512, wants_logits=False)])
    with pytest.raises(EngineError, match=r"513 positions but the model's context ends at 512"):
        engine.forward([tokens(0, 512, [1])])


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        (np.zeros((2, 64), np.float32), "expects token ids"),
        (np.zeros(0, np.int32), "expects token ids"),
        (np.array([264], np.int32), "outside the vocabulary of 264"),
        (np.array([-1], np.int32), "outside the vocabulary of 264"),
    ],
)
def test_wrong_inputs_of_the_first_stage_are_rejected(engine: NumpyEngine, inputs: np.ndarray, complaint: str) -> None:
    with pytest.raises(EngineError, match=complaint):
        engine.forward([Chunk(0, 0, inputs)])


@pytest.mark.parametrize("inputs", [np.zeros((2, 63), np.float32), np.zeros((2, 64), np.int32)])
def test_wrong_inputs_of_a_later_stage_are_rejected(tiny: Path, inputs: np.ndarray) -> None:
    later = numpy_engine(tiny, Shard("tiny", 2, 4, 4))
    with pytest.raises(EngineError, match=r"tiny\[2:4\] expects hidden states of shape \(rows, 64\)"):
        later.forward([Chunk(0, 0, inputs)])


def test_truncating_an_unknown_slot_is_rejected(engine: NumpyEngine) -> None:
    with pytest.raises(EngineError, match="slot 5 does not exist"):
        engine.truncate(5, 0)


def test_truncating_past_the_end_is_rejected(engine: NumpyEngine) -> None:
    engine.forward([tokens(0, 0, [1, 2])])
    with pytest.raises(EngineError, match="slot 0 holds 2 positions"):
        engine.truncate(0, 3)


@pytest.mark.parametrize("logits", [-1, 3])
def test_more_logits_than_rows_are_rejected(engine: NumpyEngine, logits: int) -> None:
    with pytest.raises(EngineError, match="expects token ids"):
        engine.forward([Chunk(0, 0, np.array([1, 2], np.int32), logits)])


def test_engine_holds_at_most_its_maximum_of_slots(tiny: Path) -> None:
    engine = numpy_engine(tiny)
    engine.forward([tokens(slot, 0, [1]) for slot in range(MAX_SLOTS)])
    with pytest.raises(EngineError, match="close a session first"):
        engine.forward([tokens(MAX_SLOTS, 0, [1])])
