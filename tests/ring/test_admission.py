"""The queue before a ring, by random histories: nobody is overtaken or lost, and memory is never promised twice."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ring.admission import Admission, QueueFull, TooLarge, retry_after, running_mean


class Histories(RuleBasedStateMachine):
    """Sessions ask, are admitted and leave at random; `asked` is the order that must be kept."""

    @initialize(positions=st.integers(1, 40), sessions=st.integers(1, 4), queue=st.integers(0, 4))
    def begin(self, positions: int, sessions: int, queue: int) -> None:
        self.admission = Admission(positions, sessions, queue)
        self.sessions, self.queue = sessions, queue
        self.asked: list[tuple[int, int]] = []  # waiting: (session, positions)
        self.running: dict[int, int] = {}
        self.places: dict[int, int] = {}  # what the waiting were told
        self.last = 0

    @rule(positions=st.integers(1, 50))
    def ask(self, positions: int) -> None:
        self.last += 1
        waiting, capacity = len(self.asked), self.admission.positions
        if positions > capacity:
            with pytest.raises(TooLarge) as too_large:
                self.admission.ask(self.last, positions)
            assert (too_large.value.need, too_large.value.capacity) == (positions, capacity)
        elif waiting >= self.queue and (waiting or not self.has_room(positions)):
            with pytest.raises(QueueFull) as full:
                self.admission.ask(self.last, positions)
            assert full.value.waiting == waiting
        else:
            self.admission.ask(self.last, positions)
            self.asked.append((self.last, positions))

    @rule()
    def admit(self) -> None:
        session = self.admission.admit()
        if session is None:
            assert not self.asked or not self.has_room(self.asked[0][1])
            return
        expected, positions = self.asked.pop(0)
        assert session == expected
        assert self.has_room(positions)
        self.running[session] = positions
        self.places.pop(session, None)

    @precondition(lambda self: self.last)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        session = data.draw(st.integers(0, self.last))
        self.admission.leave(session)
        self.running.pop(session, None)
        self.places.pop(session, None)
        self.asked = [(waiting, positions) for waiting, positions in self.asked if waiting != session]

    @rule()
    def tell(self) -> None:
        for session, ahead in self.admission.moved():
            assert self.places.get(session) != ahead
            self.places[session] = ahead
        assert self.places == {session: ahead for ahead, (session, _) in enumerate(self.asked)}
        assert self.admission.moved() == []

    @invariant()
    def nothing_is_lost_and_memory_is_promised_once(self) -> None:
        assert self.admission.waiting == tuple(session for session, _ in self.asked)
        assert [self.admission.ahead(session) for session, _ in self.asked] == list(range(len(self.asked)))
        assert self.admission.live == len(self.running) <= self.sessions
        assert self.admission.reserved == sum(self.running.values()) <= self.admission.positions
        assert self.admission.free == self.admission.positions - self.admission.reserved
        assert len(self.asked) <= max(self.queue, 1)

    def teardown(self) -> None:
        if not hasattr(self, "admission"):
            return
        for session in [*self.running, *(session for session, _ in self.asked)]:
            self.admission.leave(session)
        assert (self.admission.reserved, self.admission.live, self.admission.waiting) == (0, 0, ())

    def has_room(self, positions: int) -> bool:
        fits = sum(self.running.values()) + positions <= self.admission.positions
        return fits and len(self.running) < self.sessions


Histories.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase


def test_a_big_session_at_the_head_is_not_overtaken_by_a_small_one() -> None:
    admission = Admission(100, 8, 8)
    for session, positions in ((1, 60), (2, 90), (3, 10)):
        admission.ask(session, positions)
    assert [admission.admit(), admission.admit()] == [1, None]
    admission.leave(1)
    assert [admission.admit(), admission.admit(), admission.admit()] == [2, 3, None]


def test_with_no_queue_a_session_runs_at_once_or_is_refused() -> None:
    admission = Admission(100, 1, 0)
    admission.ask(1, 50)
    with pytest.raises(QueueFull):
        admission.ask(2, 50)
    assert admission.admit() == 1
    with pytest.raises(QueueFull, match="0 generations wait"):
        admission.ask(2, 50)


def test_a_refusal_says_what_would_fit() -> None:
    with pytest.raises(TooLarge, match="may take 101 tokens and this ring has memory for 100; shorten"):
        Admission(100, 1, 1).ask(1, 101)


def test_a_session_asks_once() -> None:
    admission = Admission(100, 1, 4)
    admission.ask(1, 10)
    admission.ask(2, 10)
    assert admission.admit() == 1
    for session in (1, 2):
        with pytest.raises(KeyError):
            admission.ask(session, 10)
    with pytest.raises(ValueError, match="at least one position"):
        admission.ask(3, 0)


def test_only_a_session_that_waits_has_a_place() -> None:
    admission = Admission(100, 1, 4)
    admission.ask(1, 10)
    assert admission.admit() == 1
    for session in (1, 7):
        with pytest.raises(KeyError):
            admission.ahead(session)


@pytest.mark.parametrize("numbers", [(-1, 1, 1), (1, 0, 1), (1, 1, -1)])
def test_numbers_that_no_ring_has_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no ring has"):
        Admission(*numbers)


durations = st.floats(0, 1e6)


@given(durations, st.integers(0, 1000), st.integers(0, 64))
def test_the_advice_is_whole_seconds_within_a_minute_and_longer_for_a_longer_queue(
    mean_s: float, ahead: int, live: int
) -> None:
    advice = retry_after(mean_s, ahead, live)
    assert 1 <= advice <= 60
    assert advice <= retry_after(mean_s, ahead + 1, live)
    assert advice >= retry_after(mean_s, ahead, live + 1)


def test_the_advice_is_when_the_sessions_ahead_have_had_their_turn() -> None:
    assert retry_after(mean_s=10, ahead=3, live=4) == 10
    assert retry_after(mean_s=10, ahead=0, live=1) == 10
    assert retry_after(mean_s=0, ahead=9, live=1) == 1


@given(durations, st.lists(durations, min_size=1))
def test_the_running_mean_stays_among_what_was_seen_and_nears_what_repeats(first: float, later: list[float]) -> None:
    mean = first
    for newest in later:
        mean = running_mean(mean, newest)
    lowest, highest = min(first, *later), max(first, *later)
    assert lowest * (1 - 1e-9) <= mean <= highest * (1 + 1e-9)
    for _ in range(50):
        mean = running_mean(mean, later[-1])
    assert abs(mean - later[-1]) <= (highest - lowest) * 1e-3
