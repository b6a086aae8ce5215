"""`ring.sessions`: slots by random histories, and how far a session is."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cluster.openings import Opening
from cluster.sampling import SamplingParams
from ring.sessions import StageSession, StageSessions


def opening(prompt: tuple[int, ...] = (1, 2, 3), max_tokens: int = 5) -> Opening:
    return Opening(prompt, len(prompt), max_tokens, frozenset({2}), SamplingParams(), ("tcp://127.0.0.1:1",))


class Slots(RuleBasedStateMachine):
    """Add and remove sessions at random: a slot is never shared, and never higher than it has to be."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    @initialize()
    def begin(self) -> None:
        self.sessions = StageSessions()

    @rule(session=st.integers(0, 12))
    def add(self, session: int) -> None:
        if session in self.sessions.by_id:
            with pytest.raises(KeyError):
                self.sessions.add(session, opening(), 0.0)
        else:
            assert self.sessions.add(session, opening(), 0.0).id == session
        self.most = max(self.most, len(self.sessions.by_id))

    @rule(session=st.integers(0, 12))
    def remove(self, session: int) -> None:
        held = self.sessions.by_id.get(session)
        assert self.sessions.remove(session) is held

    @invariant()
    def slots_are_distinct_and_reused(self) -> None:
        slots = [held.slot for held in self.sessions.by_id.values()]
        assert len(set(slots)) == len(slots)
        assert all(0 <= slot < self.most for slot in slots)


Slots.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestSlots = Slots.TestCase


def test_session_that_reads_its_prompt_is_never_idle() -> None:
    sessions = StageSessions()
    idle = sessions.add(1, opening(), 1.0)
    sessions.add(2, opening(), 9.0)
    sessions.start_prefill(sessions.add(3, opening(), 1.0), cached=0)
    assert sessions.idle_since(5.0) == [idle]


def test_put_replaces_rejected_drafts() -> None:
    sessions = StageSessions()
    session = sessions.add(1, opening((7, 8, 9)), 0.0)
    sessions.start_prefill(session, cached=0)
    session.put(3, [20, 21, 22, 23])
    session.put(5, [30])
    assert session.tokens == [7, 8, 9, 20, 21, 30]
    assert session.computed == 5


def test_session_decodes_once_its_prompt_is_sent() -> None:
    sessions = StageSessions()
    session = sessions.add(1, opening((7, 8, 9)), 0.0)
    sessions.start_prefill(session, cached=1)
    assert (sessions.decoding, sessions.in_flight) == (0, 0)
    assert sessions.take_prompt(session, 2) == (8, 9)
    assert (sessions.decoding, sessions.in_flight) == (1, 2)
    session.put(3, [20])
    assert (sessions.decoding, sessions.in_flight) == (1, 0)
    sessions.remove(1)
    assert (sessions.decoding, sessions.in_flight) == (0, 0)


def test_token_is_expected_once_and_in_order() -> None:
    session = StageSession(1, 0, opening((1,) * 9), 0.0)
    session.tokens = [1] * 9
    assert [position for position in range(12) if session.expects(position, 1)] == [9]
    session.put(9, [5, 6, 7])  # with two drafts
    assert [position for position in range(14) if session.expects(position, 1)] == [10, 11, 12]
