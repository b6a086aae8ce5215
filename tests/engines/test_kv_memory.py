"""Memory for keys and values is taken by position, and freed with the slot."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from cluster.shard import Shard
from engines.engine import Chunk, InferenceEngine
from engines.errors import EngineError
from engines.kv_memory import KVMemory
from engines.random_weights import RandomWeights
from engines.registry import create

HIDDEN_SIZE = 64
SETTINGS = {
    "model_type": "llama",
    "num_hidden_layers": 10,
    "hidden_size": HIDDEN_SIZE,
    "num_attention_heads": 4,
    "head_dim": 64,
    "intermediate_size": 64,
    "vocab_size": 64,
    "max_position_embeddings": 8192,
}
"""Little to compute and much to store: 20 KiB a position, 160 MiB a full slot."""


SHARD = Shard("deep", 1, 9, 10)
PAGES = 8 * 2 * 4
"""The keys and the values of each layer and head begin in a page of their own."""


MEGABYTE = 1 << 20


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


@pytest.fixture(params=["numpy", "onnx"])
def engine(request: pytest.FixtureRequest) -> Iterator[InferenceEngine]:
    """Yield an engine that has computed before, so that it already has the memory that its products need."""
    engine = create(request.param, "exact")
    engine.read(SHARD, RandomWeights(SETTINGS))
    fill(engine, 0, 512)
    engine.release(0)
    yield engine
    engine.close()


def fill(engine: InferenceEngine, slot: int, positions: int) -> None:
    for position in range(0, positions, 128):
        engine.forward([Chunk(slot, position, np.zeros((128, HIDDEN_SIZE), np.float32))])


def test_slot_takes_memory_by_position_and_frees_it(engine: InferenceEngine) -> None:
    assert engine.position_bytes == 8 * 2 * 4 * 64 * 4
    before = resident()
    fill(engine, 0, 512)
    taken = resident() - before
    expected = 512 * engine.position_bytes
    assert 0.8 * expected < taken < expected + PAGES * mmap.PAGESIZE + MEGABYTE
    engine.release(0)
    assert resident() - before < MEGABYTE


def test_short_slots_take_little_memory(engine: InferenceEngine) -> None:
    before = resident()
    for slot in range(16):
        engine.forward([Chunk(slot, 0, np.zeros((1, HIDDEN_SIZE), np.float32))])
    assert resident() - before < 16 * PAGES * mmap.PAGESIZE + MEGABYTE


def test_discarding_a_part_leaves_the_rest_unchanged() -> None:
    memory = KVMemory(3, 1000)  # rows begin and end within pages
    memory.array[:] = 7
    memory.discard(memory.array[1])
    assert (memory.array[[0, 2]] == 7).all()


def test_too_much_address_space_is_rejected() -> None:
    with pytest.raises(EngineError, match=r"no address space of \d+ MiB for keys and values"):
        KVMemory(1 << 58)
