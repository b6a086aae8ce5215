"""Stubs for the layers of other stages keep positions, masks and memory right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.shard import Shard, whole
from engines.activations import rounded
from engines.engine import Chunk
from models.architecture import Dtype
from tests.support.engines import PROMPT, ROOT, EngineProcess, Ring, cut
from tests.support.models import write_tiny_llama

LAYERS = 4


@pytest.mark.parametrize("cuts", [(1,), (2,), (3,), (1, 2, 3)], ids=str)
def test_stubs_keep_positions_after_truncation(cuts: tuple[int, ...], process: EngineProcess, tiny: Path) -> None:
    unsplit = Ring([process.load("mlx", whole("tiny", LAYERS), tiny)])
    split = Ring([process.load("mlx", shard, tiny) for shard in cut("tiny", LAYERS, *cuts)])
    for ring in (unsplit, split):
        ring.step(0, 0, PROMPT)
        for stage in ring.stages:
            stage.truncate(0, 5)
    after = [(5, [7, 8, 9]), (8, [10]), (9, [11, 12])]
    for position, ids in after:
        ours, theirs = split.step(0, position, ids), unsplit.step(0, position, ids)
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_chunks_without_logits_fill_the_slot(process: EngineProcess, tiny: Path) -> None:
    ring = Ring([process.load("mlx", shard, tiny) for shard in cut("tiny", LAYERS, 2)])
    assert ring.step(0, 0, PROMPT[:6], wants_logits=False).size == 0
    in_chunks = ring.step(0, 6, PROMPT[6:])
    np.testing.assert_allclose(in_chunks, ring.step(1, 0, PROMPT), atol=2e-5)


def test_long_decoding_does_not_grow_memory(process: EngineProcess, tmp_path: Path) -> None:
    """The cache of a stub that is never evaluated would keep the graph of every step."""
    deep = write_tiny_llama(tmp_path, n_layers=30, hidden=32)
    stage = process.load("mlx", Shard("deep", 1, 2, 30), deep)
    row = np.full((1, 32), 0.1, np.float32)
    grown = []
    for slot in (0, 1):
        stage.forward([Chunk(slot, 0, np.repeat(row, 257, axis=0))])
        before = process.resident_bytes()
        for position in range(257, 510):
            stage.forward([Chunk(slot, position, row)])
        grown.append(process.resident_bytes() - before)
    assert grown[1] < 2 << 20


@pytest.fixture(scope="module")
def sliding() -> Any:
    """Run `tests.support.ring.pipeline`."""
    command = [sys.executable, "-m", "tests.support.ring.pipeline"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60)
    return json.loads(done.stdout)


def test_stubs_keep_sliding_windows_correct_at_every_cut(sliding: Any) -> None:
    assert set(sliding["differences"]) == {"1", "2", "3", "4", "5"}
    assert max(sliding["differences"].values()) < 1e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_hidden_states_are_rounded_as_in_frames(dtype: Dtype, process: EngineProcess, tmp_path: Path) -> None:
    stage = process.load("mlx", Shard("tiny", 1, 2, LAYERS), write_tiny_llama(tmp_path, dtype=dtype))
    exact = process.load("mlx", Shard("tiny", 1, 2, LAYERS), with_dtype(tmp_path, "float32"))
    rows = np.random.default_rng(0).standard_normal((33, 64), np.float32)
    rows[5] = 1e6
    ours, theirs = (engine.forward([Chunk(0, 0, rows)])[0] for engine in (stage, exact))
    assert stage.activations() == dtype
    np.testing.assert_array_equal(ours, rounded(theirs, dtype))


def with_dtype(folder: Path, dtype: Dtype) -> Path:
    """Make the configuration name another dtype for the same weights."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": dtype}))
    return folder
