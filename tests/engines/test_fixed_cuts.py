"""Chunks are cut at fixed positions, and the pieces together are the chunk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.engine import NO_LOGITS, Chunk
from engines.fixed_cuts import joined, pieces
from engines.settings import CUT
from ring.prefix_cache import BLOCK
from ring.scheduler import PROMPT_CHUNK


@given(st.integers(0, 3 * CUT), st.integers(1, 3 * CUT), st.integers(0, 3 * CUT))
def test_pieces_are_the_chunk_cut_at_fixed_positions(position: int, rows: int, logits: int) -> None:
    chunk = Chunk(3, position, np.arange(rows, dtype=np.int32), min(logits, rows))
    cut = pieces(chunk)
    assert [row for piece in cut for row in piece.inputs] == list(range(rows))
    assert [piece.position - position for piece in cut] == [int(piece.inputs[0]) for piece in cut]
    assert all(piece.position % CUT == 0 for piece in cut[1:])
    assert all(piece.position // CUT == (piece.position + piece.rows - 1) // CUT for piece in cut)
    wanted = [row for piece in cut for row in piece.inputs[piece.rows - piece.logits :]]
    assert wanted == list(range(rows - chunk.logits, rows))


@pytest.mark.parametrize(("rows", "expected"), [([0], 0), ([0, 0], 0), ([0, 2], 2), ([3, 2], 5)])
def test_joined_outputs_have_the_logits_of_all_pieces(rows: list[int], expected: int) -> None:
    outputs = [np.ones((count, 7), np.float32) if count else NO_LOGITS for count in rows]
    assert len(joined(outputs)) == expected


def test_rings_cut_at_the_same_positions() -> None:
    assert BLOCK % CUT == PROMPT_CHUNK % CUT == 0
    assert PROMPT_CHUNK > CUT
