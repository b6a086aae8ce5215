"""`ring.stage_thread`: loading, joining and draining, as seen from another thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest

from bus.dataplane.access import best_endpoint
from cluster.shard import Shard
from engines.engine import Chunk, FloatArray
from engines.errors import EngineError
from engines.numpy.engine import NumpyEngine
from ring import stage as stage_module
from ring.loaded_shard import LoadedShard
from ring.ring_view import ring_view
from ring.sessions import SessionProgress
from ring.stage_thread import InUse, StageThread
from ring.steps import StageCounts
from tests.support.bus import WITHIN_S, in_time
from tests.support.engines import Ring
from tests.support.ring.stage_ring import GREEDY, N_LAYERS, PROMPT, Gateway, stage_ring, started


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


def test_stage_in_use_is_not_drained_as_an_idle_one(weights: Path) -> None:
    with stage_ring(weights, 2, positions=64) as ring:
        first = ring.stages[0]
        ring.gateway.open(1, max_tokens=40)
        ring.gateway.open(2, max_tokens=40)  # waits for the memory of the first
        ring.gateway.receive(1, tokens=1)
        assert in_time(lambda: first.counts.waiting == 1)
        with pytest.raises(InUse):
            first.drain(if_idle=True).result(WITHIN_S)
        assert first.idle_s == 0.0
        ring.gateway.receive(1)
        ring.gateway.close(1)
        ring.gateway.receive(2)  # it was not refused
        ring.gateway.close(2)
        assert ring.all_closed()
        first.drain(if_idle=True).result(WITHIN_S)
        ring.gateway.open(3)
        assert "this instance is being replaced" in ring.failure(3)


def test_stage_is_idle_from_its_last_session_on(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "FIRST_SESSION_S", 3600.0)
    with stage_ring(weights, 2) as ring:
        assert [stage.idle_s for stage in ring.stages] == [0.0, 0.0]  # the session that it was placed for comes
        ring.generate(1, PROMPT, 4, GREEDY)
        assert ring.all_closed()
        idle_s = [stage.idle_s for stage in ring.stages]
        assert all(0.0 < seconds < WITHIN_S for seconds in idle_s)
        assert all(stage.idle_s > before for stage, before in zip(ring.stages, idle_s, strict=True))


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


def test_progress_tells_waiting_from_running_sessions(weights: Path) -> None:
    with stage_ring(weights, 2, positions=64) as ring:
        first, last = ring.stages
        ring.gateway.open(1, max_tokens=40)
        ring.gateway.open(2, max_tokens=40)
        ring.gateway.receive(1)
        end = len(PROMPT) + 40
        assert in_time(lambda: first.progress_of([2])[1] == [SessionProgress(waiting=True)])
        assert in_time(lambda: not any(found and found.active for found in first.progress_of([1])[1]))
        expected = [SessionProgress(frames=40, sampled=end), None, None]
        assert in_time(lambda: last.progress_of([1, 2, 3])[1] == expected)
        ring.gateway.close(1)
        ring.gateway.receive(2)
        assert first.progress_of([1])[1] == [None]


def test_progress_is_known_while_a_pass_runs(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def held(engine: NumpyEngine, batch: Sequence[Chunk]) -> list[FloatArray]:
        assert go_on.wait(WITHIN_S)
        return forward(engine, batch)

    go_on, forward = threading.Event(), NumpyEngine.forward
    monkeypatch.setattr(NumpyEngine, "forward", held)
    with stage_ring(weights, 1) as ring:
        ring.gateway.open(1, max_tokens=4)
        ring.gateway.open(2, max_tokens=4)
        assert in_time(lambda: ring.stages[0].progress_of([1])[1] == [SessionProgress(active=True)])
        turns, _ = ring.stages[0].progress_of([])
        go_on.set()
        ring.gateway.receive(1, 2)
        assert in_time(lambda: ring.stages[0].progress_of([1])[1] == [SessionProgress(sampled=len(PROMPT) + 4)])
        assert ring.stages[0].progress_of([])[0] > turns


def test_session_with_a_lost_frame_stands_still(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "IDLE_WAIT_MS", 20)
    with stage_ring(weights, 2) as ring:
        stranded = Gateway(ring.run_dir, best_endpoint(ring.instance.stages[1].endpoints), "stranded")
        stranded.open(1)  # on the second stage, to which no hidden states will come
        last = ring.stages[1]
        assert in_time(lambda: last.progress_of([1])[1] == [SessionProgress()])
        turns, _ = last.progress_of([1])
        assert in_time(lambda: last.progress_of([1])[0] > turns + 2)
        assert last.progress_of([1])[1] == [SessionProgress()]
        stranded.close(1)
        assert ring.all_closed()
        stranded.transport.close()


def test_shard_without_a_ring_knows_no_session(weights: Path, tmp_path: Path) -> None:
    thread = started(Shard("tiny", 0, N_LAYERS, N_LAYERS), weights, tmp_path, 0)
    thread.loaded.result(WITHIN_S)
    assert thread.progress_of([1]) == (0, [None])
    thread.finish().result(WITHIN_S)
    thread.join(WITHIN_S)


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
