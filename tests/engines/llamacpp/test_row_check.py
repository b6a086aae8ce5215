"""A shard reports how many rows it computes with the bits of each alone, and keeps to that later in a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.shard import Shard, whole
from engines.engine import Chunk
from engines.llamacpp.engine import LlamaCppEngine
from engines.llamacpp.row_check import SIZES
from tests.support.gguf_models import FAMILIES, VOCAB, write_model

LAYERS = FAMILIES["llama"].n_layers
IDS = np.random.default_rng(3).integers(0, VOCAB, 700).astype(np.int32)


@pytest.fixture(autouse=True)
def one_thread(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXOBUS_CACHE", str(models))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def loaded(path: Path, shard: Shard) -> LlamaCppEngine:
    engine = LlamaCppEngine()
    engine.load(shard, path)
    return engine


@pytest.mark.parametrize("held", [0, 100, 600])
def test_rows_that_are_called_exact_have_the_bits_of_each_alone(held: int, llama: Path) -> None:
    engine = loaded(llama, whole("model", LAYERS))
    rows = engine.exact_rows
    engine.forward([Chunk(0, 0, IDS[:held])] if held else [])
    alone = [engine.forward([Chunk(0, at, IDS[at : at + 1], 1)])[0][0] for at in range(held, held + rows)]
    engine.truncate(0, held)
    together = engine.forward([Chunk(0, held, IDS[held : held + rows], rows)])[0]
    engine.close()
    np.testing.assert_array_equal(together, alone)
    assert rows == SIZES[-1]


@pytest.mark.parametrize(("start", "end"), [(0, 2), (2, 3), (3, 5)])
def test_every_part_of_a_model_is_measured(start: int, end: int, llama: Path) -> None:
    engine = loaded(llama, Shard("model", start, end, LAYERS))
    assert engine.exact_rows == SIZES[-1]
    engine.close()


def test_unquantized_rows_are_not_exact(tmp_path: Path) -> None:
    engine = loaded(write_model(tmp_path / "model.gguf", "llama"), whole("model", LAYERS))
    assert engine.exact_rows == 1
    engine.close()


def test_several_threads_have_no_exact_rows(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    engine = loaded(llama, whole("model", LAYERS))
    assert engine.exact_rows == 1
    engine.close()
