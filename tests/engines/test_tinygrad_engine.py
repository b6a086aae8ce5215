"""What is tinygrad's own: its compiler and captured shapes. Its answers are checked in `test_engines_agree`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.shard import whole
from engines.engine import Chunk, EngineError
from engines.numpy.engine import NumpyEngine
from engines.tinygrad.clang import ensure_clang
from engines.tinygrad.shard_model import FIRST_CAPACITY, LONG, SHORT, TOGETHER, passes, pieces
from tests.support.batches import Sessions, live_a_life
from tests.support.engines import ROOT, EngineProcess, Ring
from tests.support.models import write_tiny_llama

PROMPT = [5, 250, 17, 99, 3, 3, 120, 64, 200, 31, 7]
TINY = whole("tiny", 4)


@pytest.fixture
def long_context(tmp_path: Path) -> Path:
    """A tiny model whose context is longer than a slot's first capacity."""
    folder = write_tiny_llama(tmp_path / "long", n_layers=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2 * FIRST_CAPACITY}))
    return folder


@pytest.fixture(scope="module")
def process() -> Iterator[EngineProcess]:
    with EngineProcess() as process:
        yield process


def test_a_machine_without_any_compiler_runs_it(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny")
    # No program to be found, no compiled kernel from an earlier run.
    with EngineProcess(PATH="", CC="", XDG_CACHE_HOME=str(tmp_path), DEV="CPU") as process:
        made = Ring([process.load("tinygrad", TINY, path)]).generate(PROMPT, 3)
    reference = NumpyEngine()
    reference.load(TINY, path)
    assert made.tokens == Ring([reference]).generate(PROMPT, 3).tokens


@pytest.mark.parametrize("compiler", ["", "gcc", "/usr/bin/cc"])
def test_a_compiler_that_is_no_clang_is_replaced_by_one(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ensure_clang()
    chosen = Path(os.environ["CC"])
    version = subprocess.run([chosen, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert "clang version" in version.stdout
    assert [file.name for file in chosen.parent.iterdir()] == [chosen.name]


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("CC", "")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(EngineError, match=r"file/exobus/zig-clang cannot be written .*; set CC to a clang"):
        ensure_clang()


def test_a_clang_that_the_user_names_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/opt/llvm/bin/clang-21")
    ensure_clang()
    assert os.environ["CC"] == "/opt/llvm/bin/clang-21"


@given(st.integers(1, 3000))
def test_pieces_cover_a_chunk_in_few_shapes_and_pad_only_the_last(rows: int) -> None:
    cut = list(pieces(rows))
    starts = [start for start, _ in cut]
    assert starts == [sum(size for _, size in cut[:index]) for index in range(len(cut))]
    padding = sum(size for _, size in cut) - rows
    assert 0 <= padding < SHORT
    assert padding < cut[-1][1]
    assert {size for _, size in cut} <= {1, SHORT, LONG}


def test_a_slot_that_outgrows_its_capacity_keeps_what_it_held(process: EngineProcess, long_context: Path) -> None:
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
def test_passes_take_every_chunk_once_and_single_rows_of_a_capacity_together(chunks: list[tuple[int, int]]) -> None:
    rows, capacities = [count for count, _ in chunks], [room for _, room in chunks]
    groups = list(passes(rows, capacities))
    assert sorted(index for group in groups for index in group) == list(range(len(chunks)))
    for group in groups:
        assert len(group) == 1 or {rows[index] for index in group} == {1}
        assert len({capacities[index] for index in group}) == 1
        assert len(group) in TOGETHER
    for room in (512, 1024):
        sizes = [len(group) for group in groups if rows[group[0]] == 1 and capacities[group[0]] == room]
        assert all(sizes.count(size) < 2 for size in TOGETHER[1:])


def test_a_ragged_batch_gives_each_session_the_references_answers(process: EngineProcess, tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path, n_layers=2)
    reference = NumpyEngine()
    reference.load(whole("tiny", 2), path)
    live_a_life(Sessions([process.load("tinygrad", whole("tiny", 2), path)], reference), PROMPT)


def test_importing_the_registry_imports_no_engine() -> None:
    program = "import sys, engines.registry; sys.exit(bool({'tinygrad', 'mlx'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
