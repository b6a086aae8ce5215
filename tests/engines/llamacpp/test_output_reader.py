"""Hidden states are found also if their tensor lies where another one lay before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.shard import Shard
from engines.engine import Chunk
from engines.llamacpp.engine import LlamaCppEngine
from engines.llamacpp.output_reader import OutputReader
from engines.llamacpp.shard_model import SharedContext
from tests.support.gguf_models import FAMILIES, VOCAB

IDS = np.random.default_rng(4).integers(0, VOCAB, 20).astype(np.int32)


class AllAddresses(set[int]):
    """The addresses of all tensors, until it is cleared."""

    everything = True

    def __contains__(self, address: object) -> bool:
        return self.everything or super().__contains__(address)

    def clear(self) -> None:
        self.everything = False
        super().clear()


def test_pass_with_missed_output_is_repeated(llama: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXOBUS_CACHE", str(models))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    engine = LlamaCppEngine()
    engine.load(Shard("model", 0, 3, FAMILIES["llama"].n_layers), llama)
    batch = [Chunk(0, 0, IDS[:9]), Chunk(1, 0, IDS[9:13])]
    later = [Chunk(1, 4, IDS[13:14]), Chunk(0, 9, IDS[14:20])]
    expected = [*engine.forward(batch), *engine.forward(later)]
    for slot in (0, 1):
        engine.release(slot)
    found = []
    for chunks in (batch, later):
        reader = reader_of(engine)
        reader._others = missed = AllAddresses()
        found += engine.forward(chunks)
        assert not missed.everything, "no pass was repeated"
    engine.close()
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def reader_of(engine: LlamaCppEngine) -> OutputReader:
    assert engine._opened is not None
    _, model = engine._opened
    assert isinstance(model, SharedContext)
    assert model.context._reader is not None
    return model.context._reader
