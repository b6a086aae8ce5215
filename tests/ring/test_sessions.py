"""Sessions on a stage and the token log of their owner; slots are checked by random histories."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cluster.openings import Opening
from cluster.sampling import SamplingParams
from gateway.core.token_log import TokenGap, TokenLog
from ring.sessions import StageSessions


def opening(prompt: tuple[int, ...] = (1, 2, 3), max_tokens: int = 5) -> Opening:
    return Opening(prompt, len(prompt), max_tokens, frozenset({2}), SamplingParams(), ("tcp://127.0.0.1:1",))


class Slots(RuleBasedStateMachine):
    """Open and close at random: a slot is never shared, and never higher than it has to be."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    @initialize()
    def begin(self) -> None:
        self.sessions = StageSessions()

    @rule(session=st.integers(0, 12))
    def open(self, session: int) -> None:
        if session in self.sessions.by_id:
            with pytest.raises(KeyError):
                self.sessions.open(session, opening(), 0.0)
        else:
            assert self.sessions.open(session, opening(), 0.0).session == session
        self.most = max(self.most, len(self.sessions.by_id))

    @rule(session=st.integers(0, 12))
    def close(self, session: int) -> None:
        held = self.sessions.by_id.get(session)
        assert self.sessions.close(session) is held

    @invariant()
    def slots_are_distinct_and_used_again(self) -> None:
        slots = [held.slot for held in self.sessions.by_id.values()]
        assert len(set(slots)) == len(slots)
        assert all(0 <= slot < self.most for slot in slots)


Slots.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestSlots = Slots.TestCase


def test_idle_sessions_are_those_without_a_prompt_here_that_nothing_was_heard_of() -> None:
    sessions = StageSessions()
    idle = sessions.open(1, opening(), 1.0)
    sessions.open(2, opening(), 9.0)
    sessions.begin(sessions.open(3, opening(), 1.0), known=0)
    assert sessions.idle_since(5.0) == [idle]


def test_what_the_ring_gave_back_refutes_the_drafts_behind_it() -> None:
    sessions = StageSessions()
    session = sessions.open(1, opening((7, 8, 9)), 0.0)
    sessions.begin(session, known=0)
    session.returned(3, [20, 21, 22, 23])
    session.returned(5, [30])
    assert session.tokens == [7, 8, 9, 20, 21, 30]
    assert session.through == 5


def test_a_session_decodes_once_its_prompt_is_sent_on() -> None:
    sessions = StageSessions()
    session = sessions.open(1, opening((7, 8, 9)), 0.0)
    sessions.begin(session, known=1)
    assert (sessions.decoding, sessions.in_flight) == (0, 0)
    assert sessions.read(session, 2) == (8, 9)
    assert (sessions.decoding, sessions.in_flight) == (1, 2)
    session.returned(3, [20])
    assert (sessions.decoding, sessions.in_flight) == (1, 0)
    sessions.close(1)
    assert (sessions.decoding, sessions.in_flight) == (0, 0)


def test_a_generation_ends_at_a_stop_token_or_at_its_limit() -> None:
    asked = opening(max_tokens=3)
    assert [asked.finish_reason(7, index) for index in range(4)] == ["", "", "length", "length"]
    assert asked.finish_reason(2, 0) == "stop"


@given(st.lists(st.integers(0, 9), max_size=60))
def test_the_log_takes_each_index_once_and_in_order(indices: list[int]) -> None:
    log = TokenLog()
    for index in indices:
        due = len(log.tokens)
        if index > due:
            with pytest.raises(TokenGap, match=f"token {index} came where {due} was due"):
                log.accept(index, 100 + index)
        else:
            assert log.accept(index, 100 + index) == (index == due)
    assert log.tokens == [100 + index for index in range(len(log.tokens))]
