"""`gateway.core.session_check`: which answers of the stages, in which order, mean that a session is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.messages import SessionState
from gateway.core.session_check import (
    CHECK_EVERY_S,
    ROUNDS_OF_STALL,
    THAWED_EVERY_S,
    Answer,
    Pace,
    Round,
    Silence,
    StageGone,
    StageReply,
    Verdict,
    verdict,
)

NEXT = 9  # the position of the token that the gateway waits for
GONE = StageGone()
SILENT = None


def runs(turns: int, *, frames: int = 1, sampled: int = 0, active: bool = False) -> StageReply:
    """Return the reply of a stage that has the session."""
    return StageReply(turns, SessionState("5", active=active, frames=frames, sampled=sampled))


def waits(turns: int) -> StageReply:
    """Return the reply of a first stage that has the session in its queue."""
    return StageReply(turns, SessionState("5", waiting=True))


def lacks(turns: int) -> StageReply:
    """Return the reply of a stage that does not know the session."""
    return StageReply(turns, None)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        # a stage does not know the session
        ([lacks(1)], [lacks(2)], Verdict.LOST),
        ([runs(1), lacks(1)], [runs(2), lacks(2)], Verdict.LOST),
        ([runs(1), runs(1), lacks(1)], [runs(2), runs(2), lacks(2)], Verdict.LOST),
        ([lacks(1), runs(1)], [lacks(2), runs(2)], Verdict.LOST),
        ([lacks(1)], [runs(2)], None),
        ([runs(1), lacks(1)], [runs(2), runs(2)], None),
        # it is on its way: the stage before has just got it, or the stage computes and has not read its frames
        ([lacks(1), lacks(1)], [runs(2), lacks(2)], None),
        ([runs(1), lacks(1)], [runs(2), lacks(1)], None),
        # it waits on the first stage, or that one is frozen and may have it
        ([waits(1), lacks(1)], [waits(2), lacks(2)], None),
        ([SILENT, lacks(1)], [SILENT, lacks(2)], None),
        # the last stage has sampled what never came
        ([runs(1), runs(1, sampled=NEXT + 1)], [runs(2), runs(2, sampled=NEXT + 1)], Verdict.TOKENS_LOST),
        ([SILENT, runs(1, sampled=NEXT + 1)], [SILENT, runs(2, sampled=NEXT + 5)], Verdict.TOKENS_LOST),
        ([runs(1), runs(1, sampled=NEXT)], [runs(2), runs(2, sampled=NEXT + 1)], None),
        ([runs(1), runs(1, sampled=NEXT + 1)], [runs(2), SILENT], None),
        # a stage is gone
        ([runs(1), GONE], [runs(2), GONE], Verdict.GONE),
        ([GONE, SILENT], [GONE, SILENT], Verdict.GONE),
        ([GONE, runs(1)], [runs(2), GONE], None),
        ([GONE], [SILENT], None),
        # too early to say
        ([runs(1), runs(1)], [runs(2), runs(2)], None),
        ([SILENT, SILENT], [SILENT, SILENT], None),
    ],
)
def test_two_rounds_give_the_verdict(before: list[Answer], now: list[Answer], expected: Verdict | None) -> None:
    assert verdict([tuple(now)], NEXT) is None
    assert verdict([tuple(before), tuple(now)], NEXT) is expected


@pytest.mark.parametrize(
    ("middle", "expected"),
    [
        ((runs(2), runs(2)), Verdict.STALLED),
        ((runs(2, active=True), runs(2)), None),
        ((runs(2), runs(2, frames=2)), None),
        ((runs(2), runs(2, sampled=4)), None),
        ((runs(2), runs(1)), None),  # it computes for another session, and its inbox may hold a frame
        ((waits(2), runs(2)), None),
        ((runs(2), SILENT), None),
        ((GONE, runs(2)), None),
    ],
)
def test_session_stalls_if_nothing_moves_in_three_rounds(middle: Round, expected: Verdict | None) -> None:
    assert verdict([(runs(1), runs(1)), middle, (runs(3), runs(3))], NEXT) is expected


def opening_round(stages: int, step: int) -> Round:
    """Return a round of a ring in which one frame of a session moves on at each step: its opening, then its prompt."""
    return tuple(
        lacks(step) if step < index else runs(step, frames=int(index > 0 and step >= stages + index - 1))
        for index in range(stages)
    )


@given(st.integers(1, 6), st.data())
def test_session_that_moves_gets_no_verdict(stages: int, data: st.DataObject) -> None:
    steps = data.draw(st.lists(st.integers(0, 2 * stages - 1), min_size=2, max_size=5, unique=True).map(sorted))
    rounds = [opening_round(stages, step) for step in steps]
    for end in range(2, len(rounds) + 1):
        assert verdict(rounds[max(0, end - ROUNDS_OF_STALL) : end], NEXT) is None


answers = st.one_of(
    st.none(),
    st.just(GONE),
    st.builds(lacks, st.integers(0, 3)),
    st.builds(waits, st.integers(0, 3)),
    st.builds(
        runs, st.integers(0, 3), frames=st.integers(0, 2), sampled=st.integers(0, NEXT + 2), active=st.booleans()
    ),
)


@given(st.lists(st.tuples(answers, answers, answers), max_size=ROUNDS_OF_STALL), st.integers(0, 2))
def test_frozen_stage_never_stalls_a_session(rounds: list[Round], frozen: int) -> None:
    seen = [(*answers[:frozen], SILENT, *answers[frozen + 1 :]) for answers in rounds]
    assert verdict(seen, NEXT) is not Verdict.STALLED


@given(st.lists(st.tuples(answers, answers), min_size=2, max_size=ROUNDS_OF_STALL))
def test_queue_and_activity_are_no_loss(rounds: list[Round]) -> None:
    busy = [(waits(turn), second) for turn, (_, second) in enumerate(rounds)]
    assert verdict(busy, NEXT + 9) in (None, Verdict.GONE)


def test_stages_are_asked_after_silence_and_again() -> None:
    silence = Silence(10.0)
    assert not silence.is_due(10.0 + CHECK_EVERY_S / 2)
    silence.heard(11.0)
    assert not silence.is_due(10.0 + CHECK_EVERY_S)
    assert silence.is_due(11.0 + CHECK_EVERY_S)
    silence.ask(14.0)
    assert not silence.is_due(14.0 + CHECK_EVERY_S / 2)
    assert silence.is_due(14.0 + CHECK_EVERY_S)


def test_stages_are_asked_sooner_after_a_freeze() -> None:
    pace = Pace(late_s=1.5)
    assert [pace.every_s(now) for now in (10.0, 10.25, 11.7)] == [CHECK_EVERY_S] * 3
    assert pace.every_s(15.7) == THAWED_EVERY_S
    for now in (15.95, 17.4, 18.9, 20.4):
        assert pace.every_s(now) == THAWED_EVERY_S
    assert pace.every_s(20.7) == CHECK_EVERY_S


def test_rounds_before_a_token_do_not_count() -> None:
    silence = Silence(0.0)
    assert silence.judge((lacks(1),), 2.0, NEXT) is None
    silence.heard(3.0)
    assert silence.judge((lacks(2),), 2.5, NEXT) is None  # begun before the token came
    assert silence.judge((lacks(3),), 5.0, NEXT) is None
    assert silence.judge((lacks(4),), 7.0, NEXT) is Verdict.LOST
