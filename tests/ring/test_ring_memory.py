"""`ring.ring_memory`: the memory that sessions and stored prefixes share, and that dropped blocks reach every stage."""

from __future__ import annotations

import pytest

from cluster.openings import Opening
from cluster.sampling import SamplingParams
from ring import ring_memory as module
from ring.prefix_cache import BLOCK, CacheReport
from ring.ring_memory import FORGET_AFTER_S, REPORT_EVERY_S, RingMemory

TEXT = tuple(range(1000))


def opening(prompt: tuple[int, ...], max_tokens: int = BLOCK) -> Opening:
    return Opening(prompt, len(prompt), max_tokens, frozenset(), SamplingParams(), ())


def admitted(memory: RingMemory, session: int, prompt: tuple[int, ...], max_tokens: int = BLOCK) -> Opening:
    """Enqueue a session, which is admitted at once; return its opening for the stages."""
    assert memory.enqueue(session, opening(prompt, max_tokens)) is None
    next_one = memory.admit(0.0)
    assert next_one is not None
    assert next_one[0] == session
    return next_one[1]


def test_stored_text_is_reused_and_makes_room() -> None:
    memory = RingMemory(8 * BLOCK, 4)
    admitted(memory, 1, TEXT[: 3 * BLOCK])
    update = memory.store(TEXT[: 3 * BLOCK])
    assert update is not None
    memory.remove(1, 1.0)
    again = admitted(memory, 2, TEXT[: 3 * BLOCK])
    assert again.reuse == update.numbers[:2], "one token at least is left to compute"
    memory.remove(2, 2.0)
    large = admitted(memory, 3, TEXT[500 : 500 + 7 * BLOCK])
    assert sorted(large.drop) == sorted(update.numbers)


def test_nothing_is_stored_if_a_stage_cannot_copy() -> None:
    memory = RingMemory(8 * BLOCK, 4, stores=False)
    admitted(memory, 1, TEXT[: 3 * BLOCK])
    assert memory.store(TEXT[: 3 * BLOCK]) is None
    memory.remove(1, 1.0)
    assert admitted(memory, 2, TEXT[: 3 * BLOCK]).reuse == ()


def test_next_opening_repeats_drops_of_failed_start() -> None:
    memory = RingMemory(4 * BLOCK, 4)
    admitted(memory, 1, TEXT[: 2 * BLOCK])
    update = memory.store(TEXT[:BLOCK])
    assert update is not None
    memory.remove(1, 0.0)
    not_started = admitted(memory, 2, TEXT[500 : 500 + 3 * BLOCK])
    assert not_started.drop == update.numbers
    memory.undo_admission(2, not_started, 0.0)
    assert admitted(memory, 3, (1, 2)).drop == update.numbers
    memory.remove(3, 0.0)
    assert admitted(memory, 4, (1, 2)).drop == ()


def test_invalidated_blocks_are_dropped_and_not_reused() -> None:
    memory = RingMemory(16 * BLOCK, 4)
    admitted(memory, 1, TEXT[: 3 * BLOCK])
    update = memory.store(TEXT[: 3 * BLOCK])
    assert update is not None
    memory.invalidate()
    after = admitted(memory, 2, TEXT[: 3 * BLOCK])
    assert after.reuse == ()
    assert after.drop_below == max(update.numbers) + 1
    stored = memory.store(TEXT[: 3 * BLOCK])
    assert stored is not None
    assert stored.drop_below == after.drop_below <= min(stored.numbers)


def test_queue_positions_are_reported_on_change_and_periodically() -> None:
    memory = RingMemory(2 * BLOCK, 4)
    admitted(memory, 1, (1,), 2 * BLOCK - 1)
    for session in (2, 3):
        assert memory.enqueue(session, opening((1,))) is None
    assert memory.admit(0.0) is None
    assert [(session, ahead) for session, _, ahead in memory.moved(0.0)] == [(2, 0), (3, 1)]
    assert memory.moved(1.0) == []
    memory.remove(2, 1.0)
    assert [(session, ahead) for session, _, ahead in memory.moved(1.0)] == [(3, 0)]
    assert [(session, ahead) for session, _, ahead in memory.moved(REPORT_EVERY_S)] == [(3, 0)]


def test_refusals_carry_code_and_retry_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 1)
    memory = RingMemory(2 * BLOCK, 4)
    large = memory.enqueue(1, opening(TEXT))
    assert large is not None
    assert large.code == "too_large"
    admitted(memory, 2, (1,), 2 * BLOCK - 1)
    assert memory.enqueue(3, opening((1,))) is None
    full = memory.enqueue(4, opening((1,)))
    assert full is not None
    assert full.code == "queue_full"
    assert 1 <= full.retry_after_s <= 60


@pytest.mark.parametrize(
    "invalid", [opening(()), opening((1,), 0), Opening((1,), 2, 1, frozenset(), SamplingParams(), ())]
)
def test_opening_without_prompt_or_answer_is_refused(invalid: Opening) -> None:
    with pytest.raises(ValueError, match="needs a prompt"):
        RingMemory(100, 1).enqueue(1, invalid)


def test_remove_waiting_empties_the_queue() -> None:
    memory = RingMemory(2 * BLOCK, 4)
    admitted(memory, 1, (1,), 2 * BLOCK - 1)
    assert memory.enqueue(2, opening((1,))) is None
    assert [session for session, _ in memory.remove_waiting()] == [2]
    assert memory.waiting == 0
    memory.remove(1, 1.0)
    assert memory.admit(1.0) is None


def with_three_blocks() -> RingMemory:
    """Return a memory with sessions that are over, and in which three blocks are stored."""
    memory = RingMemory(16 * BLOCK, 4)
    admitted(memory, 1, TEXT[: 3 * BLOCK])
    assert memory.store(TEXT[: 3 * BLOCK]) is not None
    memory.remove(1, 1.0)
    return memory


def test_stage_with_the_least_memory_bounds_the_cache() -> None:
    memory = with_three_blocks()
    assert memory.trim(2.0) is None
    memory.reported(0, CacheReport(9 * BLOCK))
    memory.reported(1, CacheReport(2 * BLOCK))
    update = memory.trim(2.0)
    assert update is not None
    assert (update.drop, update.numbers) == ((2,), ())
    assert memory.trim(2.0) is None
    assert admitted(memory, 2, TEXT[: 4 * BLOCK]).reuse == (0, 1)
    assert memory.store(TEXT[: 4 * BLOCK]) is None
    memory.reported(1, CacheReport(5 * BLOCK))
    again = memory.store(TEXT[: 4 * BLOCK])
    assert again is not None
    assert len(again.numbers) == 2


def test_idle_ring_stores_nothing() -> None:
    memory = with_three_blocks()
    assert memory.trim(1.0 + FORGET_AFTER_S) is None
    update = memory.trim(1.1 + FORGET_AFTER_S)
    assert update is not None
    assert update.drop_below == 3
    assert memory.trim(2.1 + FORGET_AFTER_S) is None
    assert admitted(memory, 2, TEXT[: 3 * BLOCK]).reuse == ()
    assert memory.trim(5 * FORGET_AFTER_S) is None, "a session that runs is no idle ring"


def test_report_of_missing_blocks_reaches_every_stage() -> None:
    memory = with_three_blocks()
    memory.reported(1, CacheReport(9 * BLOCK, lacks=True))
    update = memory.trim(2.0)
    assert update is not None
    assert update.drop_below == 3
    assert memory.trim(3.0) is None
