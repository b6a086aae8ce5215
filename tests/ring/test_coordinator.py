"""`ring.coordinator`: the queue and the prefix cache of a ring of real stages."""

from __future__ import annotations

from itertools import count as count_from
from pathlib import Path

import msgspec
import pytest

from bus.dataplane import transport as transport_module
from bus.dataplane.access import best_endpoint
from bus.dataplane.frames import Flag, Frame
from bus.dataplane.transport import Transport
from common.machine import Memory
from ring import ring_memory, stage
from ring.coordinator import RingCoordinator
from ring.prefix_cache import BLOCK, CacheUpdate
from tests.support.bus import in_time
from tests.support.engines import Ring
from tests.support.ring.stage_ring import CUTS, EPOCH, GREEDY, PROMPT, SAMPLED, StageRing, random_prompt, stage_ring


def cached(ring: StageRing, session: int) -> int:
    """Return the prompt tokens that the ring reported as cached when it admitted the session."""
    ahead, count = ring.gateway.sessions[session].queue_positions[-1]
    assert ahead == 0
    return count


@pytest.mark.parametrize("count", CUTS)
@pytest.mark.parametrize("drafts", [0, 8])
def test_second_turn_computes_only_what_is_new(weights: Path, reference: Ring, count: int, drafts: int) -> None:
    first, question = random_prompt(3 * BLOCK + 7), random_prompt(9, seed=2)
    with stage_ring(weights, count) as ring:
        answer = ring.generate(1, first, 2 * BLOCK, GREEDY, drafts)
        assert cached(ring, 1) == 0
        second = [*first, *answer, *question]
        assert ring.generate(2, second, 8, GREEDY) == reference.generate(second, 8).tokens
        assert cached(ring, 2) == (len(first) + len(answer) - 1) // BLOCK * BLOCK
        assert ring.all_closed()
        assert all(stage.counts.reused_rows == cached(ring, 2) for stage in ring.stages)
        assert not any(stage.dropped for stage in ring.stages)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("engine", ["numpy", "onnx"])
def test_invariant_ring_stores_no_answers(weights: Path, count: int, engine: str) -> None:
    first, question = random_prompt(BLOCK + 7), random_prompt(9, seed=2)
    with stage_ring(weights, count, engine=engine, precision="invariant") as ring:
        second = [*first, *ring.generate(1, first, BLOCK, GREEDY), *question]
        warm = ring.generate(2, second, 8, SAMPLED)
        assert cached(ring, 2) == BLOCK
    with stage_ring(weights, count, engine=engine, precision="invariant") as ring:
        assert ring.generate(1, second, 8, SAMPLED) == warm
        assert cached(ring, 1) == 0


@pytest.mark.parametrize("count", [1, 3])
def test_shared_prefix_is_stored_once(weights: Path, reference: Ring, count: int) -> None:
    system = random_prompt(4 * BLOCK)
    with stage_ring(weights, count) as ring:
        for session in range(5):
            prompt = [*system, *random_prompt(6, seed=10 + session)]
            assert ring.generate(session, prompt, 4, SAMPLED) == reference.generate(prompt, 4, SAMPLED).tokens
        assert [cached(ring, session) for session in range(5)] == [0, *[len(system)] * 4]
        assert ring.all_closed()
        assert [stage.counts.stored_positions for stage in ring.stages] == [len(system)] * count


def test_prompt_is_stored_with_its_first_token(weights: Path) -> None:
    system = random_prompt(2 * BLOCK)
    with stage_ring(weights, 2) as ring:
        ring.gateway.open(1, system, max_tokens=300)
        ring.gateway.receive(1, tokens=3)
        ring.generate(2, [*system, 5, 6], 2, GREEDY)
        assert cached(ring, 2) == len(system)
        ring.gateway.close(1)
        assert ring.all_closed()


def test_stored_prefixes_make_room_for_sessions(weights: Path, reference: Ring) -> None:
    with stage_ring(weights, 2, positions=300) as ring:
        for session in range(3):
            ring.generate(session, random_prompt(BLOCK * 2, seed=session), 4, GREEDY)
        assert ring.stages[1].counts.stored_positions == 6 * BLOCK
        prompt = random_prompt(200, seed=50)
        assert ring.generate(9, prompt, 40, GREEDY) == reference.generate(prompt, 40).tokens
        for stage in ring.stages:
            assert stage.counts.stored_positions <= 300


@pytest.mark.parametrize("count", [1, 2])
def test_sessions_beyond_the_memory_wait_in_order(weights: Path, reference: Ring, count: int) -> None:
    with stage_ring(weights, count, positions=64) as ring:
        for session in range(5):
            ring.gateway.open(session, PROMPT, max_tokens=50)
        ring.gateway.receive(0)
        assert [len(ring.gateway.sessions[session].log.tokens) for session in range(1, 5)] == [0] * 4
        for session in range(5):
            ring.gateway.receive(session)
            ring.gateway.close(session)
        expected = reference.generate(PROMPT, 50).tokens
        for session, received in ring.gateway.sessions.items():
            assert received.log.tokens == expected
            assert [ahead for ahead, _ in received.queue_positions] == list(range(session, -1, -1))
        assert ring.all_closed()


def test_close_removes_a_session_from_the_queue(weights: Path) -> None:
    with stage_ring(weights, 2, positions=64) as ring:
        for session in range(3):
            ring.gateway.open(session, PROMPT, max_tokens=50)
        ring.gateway.receive(0, tokens=1)
        ring.gateway.close(1)
        ring.gateway.close(0)
        ring.gateway.receive(2)
        assert ring.gateway.sessions[1].log.tokens == []
        assert [stage.counts.waiting for stage in ring.stages] == [0, 0]


def test_sessions_of_a_lost_gateway_leave_the_queue(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_memory, "REPORT_EVERY_S", 0.05)
    monkeypatch.setattr(stage, "IDLE_WAIT_MS", 20)
    monkeypatch.setattr(transport_module, "SEND_TIMEOUT_MS", 200)
    with stage_ring(weights, 2, positions=64) as ring:
        ring.gateway.open(1, PROMPT, max_tokens=50)
        ring.gateway.receive(1)  # it has ended, and holds its memory until it is closed
        lost = Transport(ring.run_dir, "lost")
        for session in (2, 3):
            ring.gateway.open(session, PROMPT, max_tokens=50, reply_to=lost.endpoints)
        assert in_time(lambda: ring.stages[0].counts.waiting == 2)
        lost.close()
        assert in_time(lambda: ring.stages[0].counts.waiting == 0)
        ring.gateway.close(1)
        assert ring.all_closed()


def test_full_queue_gives_retry_after(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_memory, "MAX_WAITING", 2)
    with stage_ring(weights, 1, positions=64) as ring:
        for session in range(4):
            ring.gateway.open(session, PROMPT, max_tokens=50)
        ring.gateway.receive(3)
        failure = ring.gateway.sessions[3].failure
        assert failure is not None
        assert (failure.code, failure.retry_after_s >= 1) == ("queue_full", True)
        for session in range(3):
            ring.gateway.receive(session)
            ring.gateway.close(session)
            assert len(ring.gateway.sessions[session].log.tokens) == 50


def test_session_that_can_never_fit_is_refused(weights: Path) -> None:
    with stage_ring(weights, 2, positions=64) as ring:
        ring.gateway.open(1, PROMPT, max_tokens=60)
        assert "this ring has memory for 64" in ring.failure(1)
        assert ring.open_sessions() == [0, 0]


def test_lost_blocks_fail_one_session_and_clear_cache(weights: Path, reference: Ring) -> None:
    prompt = random_prompt(3 * BLOCK + 5)
    with stage_ring(weights, 3) as ring:
        ring.generate(1, prompt, 4, GREEDY)
        assert ring.all_closed()
        coordinator = ring.stages[0].stage.input
        assert isinstance(coordinator, RingCoordinator)
        ring.stages[1].stage.runner.blocks.drop(range(1000))
        ring.gateway.open(2, prompt, max_tokens=4)
        assert "is gone from a stage" in ring.failure(2)
        assert ring.all_closed()
        assert in_time(lambda: bool(coordinator._memory._drop_below))
        for session in (3, 4):
            assert ring.generate(session, prompt, 4, GREEDY) == reference.generate(prompt, 4).tokens
        assert cached(ring, 3) == 0
        assert cached(ring, 4) == 3 * BLOCK
        assert len(set(stored_blocks(ring))) == 1


def stored_blocks(ring: StageRing) -> list[frozenset[int]]:
    """Return the numbers of the blocks that each stage holds."""
    return [frozenset(stage.stage.runner.blocks._blocks) for stage in ring.stages]


def send_update(ring: StageRing, update: CacheUpdate) -> None:
    """Send the second stage an update for a session that is over there, as the first one does if it fails there."""
    second = best_endpoint(ring.instance.stages[1].endpoints)
    ring.gateway.transport.send(second, Frame(Flag.STORE, EPOCH, 404), msgspec.msgpack.encode(update))


def test_update_of_an_ended_session_drops_blocks(weights: Path) -> None:
    with stage_ring(weights, 3) as ring:
        ring.generate(1, random_prompt(3 * BLOCK + 5), 4, GREEDY)
        assert ring.all_closed()
        assert stored_blocks(ring) == [{0, 1, 2}] * 3
        send_update(ring, CacheUpdate(drop=(0, 2)))
        assert in_time(lambda: stored_blocks(ring)[1:] == [{1}, {1}])
        assert not any(stage.dropped for stage in ring.stages)


def test_blocks_that_a_stage_could_not_store_are_not_reused(weights: Path, reference: Ring) -> None:
    prompt = random_prompt(3 * BLOCK + 5)
    with stage_ring(weights, 3) as ring:
        ring.generate(1, prompt, 4, GREEDY)
        assert ring.all_closed()
        coordinator = ring.stages[0].stage.input
        assert isinstance(coordinator, RingCoordinator)
        send_update(ring, CacheUpdate(0, (3,)))
        assert in_time(lambda: bool(coordinator._memory._drop_below))
        assert ring.generate(2, prompt, 4, GREEDY) == reference.generate(prompt, 4).tokens
        assert cached(ring, 2) == 0
        assert ring.all_closed()
        assert stored_blocks(ring) == [{3, 4, 5}] * 3


def reused(ring: StageRing) -> int:
    """Return the prompt tokens that were cached for the session that was opened last."""
    return cached(ring, max(ring.gateway.sessions))


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Have stages look at the free memory all the time."""
    monkeypatch.setattr(stage, "CHECK_EVERY_S", 0.02)
    monkeypatch.setattr(stage, "IDLE_WAIT_MS", 10)
    return monkeypatch


@pytest.mark.parametrize("count", CUTS)
def test_machine_short_of_memory_gets_it_back(
    weights: Path, reference: Ring, often: pytest.MonkeyPatch, count: int
) -> None:
    prompt = random_prompt(3 * BLOCK + 5)
    with stage_ring(weights, count) as ring:
        ring.generate(1, prompt, 4, GREEDY)
        assert ring.all_closed()
        assert [stage.counts.stored_positions for stage in ring.stages] == [3 * BLOCK] * count
        often.setattr(stage, "memory", lambda: Memory(1 << 30, 0))
        assert in_time(lambda: max(map(len, stored_blocks(ring))) < 3)
        assert in_time(lambda: len(set(stored_blocks(ring))) == 1)
        assert ring.generate(2, prompt, 4, GREEDY) == reference.generate(prompt, 4).tokens
        often.setattr(stage, "memory", lambda: Memory(1 << 30, 1 << 30))
        sessions = count_from(3)
        assert in_time(lambda: bool(ring.generate(next(sessions), prompt, 4, GREEDY)) and reused(ring) == 3 * BLOCK)
        assert not any(stage.dropped for stage in ring.stages)


@pytest.mark.parametrize("count", CUTS)
def test_idle_ring_gives_its_cache_back(weights: Path, often: pytest.MonkeyPatch, count: int) -> None:
    often.setattr(ring_memory, "FORGET_AFTER_S", 0.1)
    with stage_ring(weights, count) as ring:
        ring.generate(1, random_prompt(3 * BLOCK + 5), 4, GREEDY)
        assert in_time(lambda: stored_blocks(ring) == [frozenset()] * count)
        assert not any(stage.dropped for stage in ring.stages)
