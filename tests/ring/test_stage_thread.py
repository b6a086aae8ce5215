"""`ring.stage_thread`: loading, joining and draining, as seen from another thread."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from cluster.shard import Shard
from engines.engine import EngineError
from ring.loaded_shard import LoadedShard
from ring.ring_view import ring_view
from ring.stage_thread import StageThread
from ring.steps import StageCounts
from tests.support.bus import WITHIN_S, in_time
from tests.support.engines import Ring
from tests.support.stage_ring import GREEDY, N_LAYERS, PROMPT, stage_ring, started


def wait_for(gate: threading.Event) -> None:
    assert gate.wait(WITHIN_S)


def test_drain_ends_with_the_last_session(weights: Path) -> None:
    with stage_ring(weights, 2) as ring:
        ring.gateway.open(1, max_tokens=400)
        ring.gateway.receive(1, tokens=1)
        drained: list[Future[None]] = [stage.drain() for stage in (*ring.stages, ring.stages[0])]
        ring.stages[0]._call(lambda: None).result(WITHIN_S)  # commands are carried out in order: the drain has begun
        ring.gateway.receive(1, tokens=3)
        ring.gateway.open(2)
        assert "this instance is being replaced" in ring.failure(2)
        assert not any(future.done() for future in drained)
        ring.gateway.close(1)
        for future in drained:
            future.result(WITHIN_S)


def test_idle_stage_drains_at_once(weights: Path) -> None:
    with stage_ring(weights, 1) as ring:
        ring.stages[0].drain().result(WITHIN_S)


def test_failed_load_is_raised_by_the_future(tmp_path: Path) -> None:
    stage = started(Shard("tiny", 0, 1, N_LAYERS), tmp_path / "nothing", tmp_path, 0)
    with pytest.raises(Exception, match="nothing"):
        stage.loaded.result(WITHIN_S)
    stage.join(WITHIN_S)


def test_shard_without_a_ring_drains_at_once(weights: Path, tmp_path: Path) -> None:
    thread = started(Shard("tiny", 0, N_LAYERS, N_LAYERS), weights, tmp_path, 0)
    assert thread.loaded.result(WITHIN_S).positions > 0
    thread.drain().result(WITHIN_S)
    assert (thread.counts, thread.dropped) == (StageCounts(), {})
    thread.finish().result(WITHIN_S)
    assert in_time(lambda: not thread.is_alive())


def test_stage_joins_one_ring_only(weights: Path) -> None:
    with stage_ring(weights, 2) as ring:
        again = ring.stages[0].join_ring(ring_view(ring.instance, "n/stage-0"))
        with pytest.raises(ValueError, match="joined a ring already"):
            again.result(WITHIN_S)


def test_cancelled_command_does_not_end_the_thread(weights: Path, reference: Ring) -> None:
    with stage_ring(weights, 2) as ring:
        stage, gate = ring.stages[0], threading.Event()
        stage._call(lambda: wait_for(gate))
        assert stage.join_ring(ring_view(ring.instance, "n/stage-0")).cancel()
        gate.set()
        assert ring.generate(1, PROMPT, 4, GREEDY) == reference.generate(PROMPT, 4).tokens


def test_cancelled_drain_does_not_end_the_thread(weights: Path, tmp_path: Path) -> None:
    thread, gate = started(Shard("tiny", 0, N_LAYERS, N_LAYERS), weights, tmp_path, 0), threading.Event()
    thread.loaded.result(WITHIN_S)
    thread._call(lambda: wait_for(gate))
    assert thread.drain().cancel()
    gate.set()
    thread.drain().result(WITHIN_S)
    thread.finish().result(WITHIN_S)
    thread.join(WITHIN_S)


def test_load_that_has_begun_cannot_be_cancelled(weights: Path, tmp_path: Path) -> None:
    loading, gate = threading.Event(), threading.Event()

    def load() -> LoadedShard:
        loading.set()
        assert gate.wait(WITHIN_S)
        raise EngineError("no such engine")

    thread = StageThread(load)
    thread.start()
    assert loading.wait(WITHIN_S)
    assert not thread.loaded.cancel()
    gate.set()
    assert isinstance(thread.loaded.exception(WITHIN_S), EngineError)
    thread.join(WITHIN_S)
