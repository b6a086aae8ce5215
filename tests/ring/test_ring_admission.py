"""The first stage's decisions: the memory they share, and that what was dropped is told to every stage in the end."""

from __future__ import annotations

import pytest

from cluster.openings import Opening
from cluster.sampling import SamplingParams
from ring import ring_admission as entrance
from ring.prefix_cache import BLOCK
from ring.ring_admission import TELL_AGAIN_S, RingAdmission

TEXT = tuple(range(1000))


def opening(prompt: tuple[int, ...], max_tokens: int = BLOCK) -> Opening:
    return Opening(prompt, len(prompt), max_tokens, frozenset(), SamplingParams(), ())


def entered(ring: RingAdmission, session: int, prompt: tuple[int, ...], max_tokens: int = BLOCK) -> Opening:
    assert ring.ask(session, opening(prompt, max_tokens)) is None
    admitted = ring.admit(0.0)
    assert admitted is not None
    assert admitted[0] == session
    return admitted[1]


def test_a_text_that_was_kept_is_reused_and_dropped_for_a_live_session() -> None:
    ring = RingAdmission(8 * BLOCK, 4)
    entered(ring, 1, TEXT[: 3 * BLOCK])
    keeping = ring.keep(TEXT[: 3 * BLOCK])
    assert keeping is not None
    ring.leave(1, 1.0)
    again = entered(ring, 2, TEXT[: 3 * BLOCK])
    assert again.reuse == keeping.numbers[:2], "one token at least is left to compute"
    ring.leave(2, 2.0)
    big = entered(ring, 3, TEXT[500 : 500 + 7 * BLOCK])
    assert sorted(big.drop) == sorted(keeping.numbers)


def test_what_a_session_that_did_not_begin_would_have_dropped_is_dropped_by_the_next() -> None:
    ring = RingAdmission(4 * BLOCK, 4)
    entered(ring, 1, TEXT[: 2 * BLOCK])
    keeping = ring.keep(TEXT[:BLOCK])
    assert keeping is not None
    ring.leave(1, 0.0)
    unlucky = entered(ring, 2, TEXT[500 : 500 + 3 * BLOCK])
    assert unlucky.drop == keeping.numbers
    ring.take_back(2, unlucky, 0.0)
    assert entered(ring, 3, (1, 2)).drop == keeping.numbers
    ring.leave(3, 0.0)
    assert entered(ring, 4, (1, 2)).drop == ()


def test_after_a_failure_nothing_stored_is_reused_and_everything_is_dropped() -> None:
    ring = RingAdmission(16 * BLOCK, 4)
    entered(ring, 1, TEXT[: 3 * BLOCK])
    keeping = ring.keep(TEXT[: 3 * BLOCK])
    assert keeping is not None
    ring.forget()
    after = entered(ring, 2, TEXT[: 3 * BLOCK])
    assert after.reuse == ()
    assert sorted(after.drop) == sorted(keeping.numbers)


def test_who_waits_is_told_when_the_place_changes_and_now_and_then() -> None:
    ring = RingAdmission(2 * BLOCK, 4)
    entered(ring, 1, (1,), 2 * BLOCK - 1)
    for session in (2, 3):
        assert ring.ask(session, opening((1,))) is None
    assert ring.admit(0.0) is None
    assert [(session, ahead) for session, _, ahead in ring.places(0.0)] == [(2, 0), (3, 1)]
    assert ring.places(1.0) == []
    ring.leave(2, 1.0)
    assert [(session, ahead) for session, _, ahead in ring.places(1.0)] == [(3, 0)]
    assert [(session, ahead) for session, _, ahead in ring.places(TELL_AGAIN_S)] == [(3, 0)]


def test_refusals_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "MOST_WAITING", 1)
    ring = RingAdmission(2 * BLOCK, 4)
    large = ring.ask(1, opening(TEXT))
    assert large is not None
    assert large.code == "too_large"
    entered(ring, 2, (1,), 2 * BLOCK - 1)
    assert ring.ask(3, opening((1,))) is None
    full = ring.ask(4, opening((1,)))
    assert full is not None
    assert full.code == "queue_full"
    assert 1 <= full.retry_after_s <= 60


@pytest.mark.parametrize("bad", [opening(()), opening((1,), 0), Opening((1,), 2, 1, frozenset(), SamplingParams(), ())])
def test_an_opening_without_prompt_or_answer_is_none(bad: Opening) -> None:
    with pytest.raises(ValueError, match="without a prompt"):
        RingAdmission(100, 1).ask(1, bad)


def test_a_drain_empties_the_queue() -> None:
    ring = RingAdmission(2 * BLOCK, 4)
    entered(ring, 1, (1,), 2 * BLOCK - 1)
    assert ring.ask(2, opening((1,))) is None
    assert [session for session, _ in ring.leave_waiting()] == [2]
    assert ring.waiting == 0
    ring.leave(1, 1.0)
    assert ring.admit(1.0) is None
