"""Sessions on a stage and the token log of their owner; slots are checked by random histories."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cluster.sampling import SamplingParams
from cluster.sessions import Opening, StageSessions, TokenGap, TokenLog


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
                self.sessions.open(session, opening(), 2, 0.0)
        else:
            assert self.sessions.open(session, opening(), 2, 0.0).session == session
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


@given(st.lists(st.integers(0, 1000), max_size=100).map(tuple), st.integers(1, 40))
def test_a_prompt_is_cut_into_chunks_that_join_to_it(prompt: tuple[int, ...], chunk: int) -> None:
    pending = StageSessions().open(1, opening(prompt), chunk, 0.0).pending
    assert sum((tokens for _, tokens in pending), ()) == prompt
    assert [at for at, _ in pending] == list(range(0, len(prompt), chunk))
    assert all(0 < len(tokens) <= chunk for _, tokens in pending)


def test_the_prompt_served_longest_ago_is_next() -> None:
    sessions = StageSessions()
    for number, now in ((1, 5.0), (2, 3.0), (3, 1.0)):
        sessions.open(number, opening() if number != 3 else opening(()), 2, now)
    due = sessions.with_prompt_left()
    assert due is not None
    assert due.session == 2
    due.pending.clear()
    sessions.by_id[1].pending.clear()
    assert sessions.with_prompt_left() is None


def test_idle_sessions_are_those_without_work_that_nothing_was_heard_of() -> None:
    sessions = StageSessions()
    sessions.open(1, opening(()), 2, 1.0)
    sessions.open(2, opening(()), 2, 9.0)
    sessions.open(3, opening(), 2, 1.0)
    assert sessions.idle_since(5.0) == [1]


def test_a_generation_ends_at_a_stop_token_or_at_its_limit() -> None:
    asked = opening(max_tokens=3)
    assert [asked.finish_reason(7, index) for index in range(4)] == ["", "", "length", "length"]
    assert asked.finish_reason(2, 0) == "stop"


def test_what_goes_onward_has_no_prompt_but_its_length() -> None:
    onward = opening((5, 6, 7)).onward()
    assert (onward.prompt, onward.prompt_tokens) == ((), 3)


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
