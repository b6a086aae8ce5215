"""Memory for keys and values is taken by the position, and goes back with the slot."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from cluster.shard import Shard
from engines.engine import Chunk, EngineError, InferenceEngine
from engines.kv_memory import KVMemory
from engines.random_weights import RandomWeights
from engines.registry import create
from models.config import ModelConfig

CONFIG = ModelConfig(
    model_type="llama",
    n_layers=10,
    hidden_size=64,
    n_heads=4,
    n_kv_heads=4,
    head_dim=64,
    intermediate_size=64,
    vocab_size=64,
    rope_theta=10000.0,
    rms_norm_eps=1e-5,
    context_length=8192,
)
"""Little to compute and much to keep: 20 KiB a position, 160 MiB a slot when it is full."""

SHARD = Shard("deep", 1, 9, 10)
PAGES = 8 * 2 * 4
"""Keys and values of each layer and head begin in pages of their own."""

MEGABYTE = 1 << 20


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


@pytest.fixture(params=["numpy", "onnx"])
def engine(request: pytest.FixtureRequest) -> Iterator[InferenceEngine]:
    """One that has computed before, so that what its products need is taken."""
    engine = create(request.param, "exact")
    engine.read(SHARD, RandomWeights(CONFIG))
    fill(engine, 0, 512)
    engine.release(0)
    yield engine
    engine.close()


def fill(engine: InferenceEngine, slot: int, positions: int) -> None:
    for position in range(0, positions, 128):
        engine.forward([Chunk(slot, position, np.zeros((128, CONFIG.hidden_size), np.float32))])


def test_a_slot_takes_memory_for_the_positions_that_it_holds_and_gives_it_back(engine: InferenceEngine) -> None:
    assert engine.position_bytes == 8 * 2 * 4 * 64 * 4
    before = resident()
    fill(engine, 0, 512)
    taken = resident() - before
    expected = 512 * engine.position_bytes
    assert 0.8 * expected < taken < expected + PAGES * mmap.PAGESIZE + MEGABYTE
    engine.release(0)
    assert resident() - before < MEGABYTE


def test_short_slots_of_a_long_context_cost_little(engine: InferenceEngine) -> None:
    before = resident()
    for slot in range(16):
        engine.forward([Chunk(slot, 0, np.zeros((1, CONFIG.hidden_size), np.float32))])
    assert resident() - before < 16 * PAGES * mmap.PAGESIZE + MEGABYTE


def test_what_is_given_back_is_what_was_asked_for_and_nothing_beside_it() -> None:
    memory = KVMemory(3, 1000)  # neither a start nor an end lies on a page
    memory.array[:] = 7
    memory.give_back(memory.array[1])
    assert (memory.array[[0, 2]] == 7).all()


def test_a_context_that_the_system_has_no_room_for_is_refused() -> None:
    with pytest.raises(EngineError, match=r"no address space of \d+ MiB for keys and values"):
        KVMemory(1 << 58)
