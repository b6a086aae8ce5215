"""A SlotEngine loads once, and a batch that fails loses its slots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cluster.capabilities import EngineCapability
from cluster.shard import Shard, whole
from engines.base import SlotEngine
from engines.engine import Chunk, FloatArray, SavedKV
from engines.errors import EngineError
from models.architecture import Architecture
from models.sizes import shard_sizes
from models.weights.reader import Weights
from tests.support.engines import numpy_engine, tokens

TINY = whole("tiny", 4)


class FailingEngine(SlotEngine[list[int]]):
    """An engine with arithmetic that fails on token 13, after it has changed the caches before it."""

    name = "failing"

    def build(self, shard: Shard, weights: Weights) -> FailingModel:
        return FailingModel(weights.architecture, shard)

    def capabilities(self) -> EngineCapability:
        return EngineCapability(name=self.name)


class FailingModel:
    def __init__(self, architecture: Architecture, shard: Shard) -> None:
        self.sizes = shard_sizes(architecture, shard)
        self.shard = shard

    def new_cache(self) -> list[int]:
        return []

    def forward(self, batch: Sequence[Chunk], caches: Sequence[list[int]]) -> list[FloatArray]:
        for chunk, cache in zip(batch, caches, strict=True):
            if 13 in chunk.inputs:
                raise MemoryError
            cache += chunk.inputs.tolist()
        return [np.array(cache, np.float32) for cache in caches]

    def truncate(self, cache: list[int], position: int) -> None:
        del cache[position:]

    def save(self, cache: list[int], start: int, end: int) -> SavedKV:
        return SavedKV(start, end, end - start, cache[start:end])

    def restore(self, cache: list[int], saved: SavedKV) -> None:
        cache += saved.content

    def release(self, cache: list[int]) -> None:
        cache.clear()


def test_failed_batch_releases_only_its_own_slots(tiny: Path) -> None:
    engine = FailingEngine()
    engine.load(TINY, tiny)
    engine.forward([tokens(slot, 0, [slot]) for slot in range(3)])
    with pytest.raises(MemoryError):
        engine.forward([tokens(0, 1, [5]), tokens(1, 1, [13])])
    for slot in (0, 1):
        with pytest.raises(EngineError, match=f"slot {slot} holds 0 positions"):
            engine.forward([tokens(slot, 1, [6])])
    assert engine.forward([tokens(2, 1, [6])])[0].tolist() == [2, 6]


def test_shard_of_another_model_is_rejected(tiny: Path) -> None:
    with pytest.raises(EngineError, match="cut for 30 layers but the weights have 4"):
        numpy_engine(tiny, whole("other", 30))


def test_closed_engine_raises_an_error(tiny: Path) -> None:
    engine = numpy_engine(tiny)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="holds no shard"):
        engine.forward([tokens(0, 0, [1])])


def test_empty_batch_returns_an_empty_list(tiny: Path) -> None:
    assert numpy_engine(tiny).forward([]) == []
