"""Chunks are cut into captured shapes, single rows are grouped, and caches grow."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.shard import whole
from engines.engine import Chunk
from engines.numpy.engine import NumpyEngine
from engines.tinygrad.shard_model import FIRST_CAPACITY, GROUP_SIZES, LONG, SHORT, passes, pieces
from tests.support.engines import PROMPT, EngineProcess
from tests.support.models import write_tiny_llama
from tests.support.ring.ragged_batches import Sessions, check_many_batches


@pytest.fixture
def long_context(tmp_path: Path) -> Path:
    """Write a tiny model with a longer context than a slot's first capacity."""
    folder = write_tiny_llama(tmp_path / "long", n_layers=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2 * FIRST_CAPACITY}))
    return folder


@given(st.integers(1, 3000))
def test_pieces_cover_a_chunk_with_little_padding(rows: int) -> None:
    cut = list(pieces(rows))
    starts = [start for start, _ in cut]
    assert starts == [sum(size for _, size in cut[:index]) for index in range(len(cut))]
    padding = sum(size for _, size in cut) - rows
    assert 0 <= padding < SHORT
    assert padding < cut[-1][1]
    assert {size for _, size in cut} <= {1, SHORT, LONG}


def test_growing_a_cache_keeps_its_content(process: EngineProcess, long_context: Path) -> None:
    shard = whole("tiny", 1)
    engine, reference = process.load("tinygrad", shard, long_context), NumpyEngine()
    reference.load(shard, long_context)
    ids = (PROMPT * 200)[: FIRST_CAPACITY + 40]
    edges = [*range(0, FIRST_CAPACITY, 5 * SHORT), len(ids) - 1, len(ids)]
    for position, end in pairwise(edges):
        chunk = Chunk(0, position, np.array(ids[position:end], np.int32), 1)
        ours, theirs = engine.forward([chunk])[0], reference.forward([chunk])[0]
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from([512, 1024])), max_size=30))
def test_passes_group_single_rows_of_equal_capacity(chunks: list[tuple[int, int]]) -> None:
    rows, capacities = [count for count, _ in chunks], [room for _, room in chunks]
    groups = list(passes(rows, capacities))
    assert sorted(index for group in groups for index in group) == list(range(len(chunks)))
    for group in groups:
        assert len(group) == 1 or {rows[index] for index in group} == {1}
        assert len({capacities[index] for index in group}) == 1
        assert len(group) in GROUP_SIZES
    for room in (512, 1024):
        sizes = [len(group) for group in groups if rows[group[0]] == 1 and capacities[group[0]] == room]
        assert all(sizes.count(size) < 2 for size in GROUP_SIZES[1:])


def test_ragged_batches_match_the_reference_for_each_session(process: EngineProcess, tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path, n_layers=2)
    reference = NumpyEngine()
    reference.load(whole("tiny", 2), path)
    check_many_batches(Sessions([process.load("tinygrad", whole("tiny", 2), path)], reference), PROMPT)
