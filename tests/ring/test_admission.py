"""`ring.admission` by random histories: no session is overtaken or lost, and no position is reserved twice."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ring.admission import Admission, QueueFull, TooLarge, retry_after, running_mean


class Histories(RuleBasedStateMachine):
    """Sessions come, are admitted and leave at random; `queued` is the order that must be kept."""

    @initialize(positions=st.integers(1, 40), sessions=st.integers(1, 4), queue=st.integers(0, 4))
    def begin(self, positions: int, sessions: int, queue: int) -> None:
        self.admission = Admission(positions, sessions, queue)
        self.sessions, self.queue = sessions, queue
        self.queued: list[tuple[int, int]] = []  # waiting: (session, positions)
        self.running: dict[int, int] = {}
        self.reported: dict[int, int] = {}  # waiting: how many are ahead, as reported
        self.last = 0

    @rule(positions=st.integers(1, 50))
    def enqueue(self, positions: int) -> None:
        self.last += 1
        waiting, capacity = len(self.queued), self.admission.positions
        if positions > capacity:
            with pytest.raises(TooLarge) as too_large:
                self.admission.enqueue(self.last, positions)
            assert (too_large.value.need, too_large.value.capacity) == (positions, capacity)
        elif waiting >= self.queue and (waiting or not self.has_room(positions)):
            with pytest.raises(QueueFull) as full:
                self.admission.enqueue(self.last, positions)
            assert full.value.waiting == waiting
        else:
            self.admission.enqueue(self.last, positions)
            self.queued.append((self.last, positions))

    @rule()
    def admit(self) -> None:
        session = self.admission.admit()
        if session is None:
            assert not self.queued or not self.has_room(self.queued[0][1])
            return
        expected, positions = self.queued.pop(0)
        assert session == expected
        assert self.has_room(positions)
        self.running[session] = positions
        self.reported.pop(session, None)

    @precondition(lambda self: self.last)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        session = data.draw(st.integers(0, self.last))
        self.admission.remove(session)
        self.running.pop(session, None)
        self.reported.pop(session, None)
        self.queued = [(waiting, positions) for waiting, positions in self.queued if waiting != session]

    @rule()
    def report(self) -> None:
        for session, ahead in self.admission.moved():
            assert self.reported.get(session) != ahead
            self.reported[session] = ahead
        assert self.reported == {session: ahead for ahead, (session, _) in enumerate(self.queued)}
        assert self.admission.moved() == []

    @invariant()
    def nothing_is_lost_and_memory_is_reserved_once(self) -> None:
        assert self.admission.waiting == tuple(session for session, _ in self.queued)
        assert self.admission.running == len(self.running) <= self.sessions
        assert self.admission.free == self.admission.positions - sum(self.running.values()) >= 0
        assert len(self.queued) <= max(self.queue, 1)

    def teardown(self) -> None:
        if not hasattr(self, "admission"):
            return
        for session in [*self.running, *(session for session, _ in self.queued)]:
            self.admission.remove(session)
        assert (self.admission.free, self.admission.running, self.admission.waiting) == (
            self.admission.positions,
            0,
            (),
        )

    def has_room(self, positions: int) -> bool:
        fits = sum(self.running.values()) + positions <= self.admission.positions
        return fits and len(self.running) < self.sessions


Histories.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestHistories = Histories.TestCase


def test_large_session_at_the_head_is_not_overtaken() -> None:
    admission = Admission(100, 8, 8)
    for session, positions in ((1, 60), (2, 90), (3, 10)):
        admission.enqueue(session, positions)
    assert [admission.admit(), admission.admit()] == [1, None]
    admission.remove(1)
    assert [admission.admit(), admission.admit(), admission.admit()] == [2, 3, None]


def test_without_queue_a_session_runs_or_is_refused() -> None:
    admission = Admission(100, 1, 0)
    admission.enqueue(1, 50)
    with pytest.raises(QueueFull):
        admission.enqueue(2, 50)
    assert admission.admit() == 1
    with pytest.raises(QueueFull, match="0 generations wait"):
        admission.enqueue(2, 50)


def test_refusal_names_the_capacity() -> None:
    with pytest.raises(TooLarge, match="may take 101 tokens and this ring has memory for 100; shorten"):
        Admission(100, 1, 1).enqueue(1, 101)


def test_session_is_enqueued_once() -> None:
    admission = Admission(100, 1, 4)
    admission.enqueue(1, 10)
    admission.enqueue(2, 10)
    assert admission.admit() == 1
    for session in (1, 2):
        with pytest.raises(KeyError):
            admission.enqueue(session, 10)
    with pytest.raises(ValueError, match="at least one position"):
        admission.enqueue(3, 0)


@pytest.mark.parametrize("numbers", [(-1, 1, 1), (1, 0, 1), (1, 1, -1)])
def test_impossible_sizes_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no ring has"):
        Admission(*numbers)


durations = st.floats(0, 1e6)


@given(durations, st.integers(0, 1000), st.integers(0, 64))
def test_retry_time_grows_within_bounds(mean_s: float, ahead: int, running: int) -> None:
    advice = retry_after(mean_s, ahead, running)
    assert 1 <= advice <= 60
    assert advice <= retry_after(mean_s, ahead + 1, running)
    assert advice >= retry_after(mean_s, ahead, running + 1)


def test_retry_time_is_when_the_queue_has_run() -> None:
    assert retry_after(mean_s=10, ahead=3, running=4) == 10
    assert retry_after(mean_s=10, ahead=0, running=1) == 10
    assert retry_after(mean_s=0, ahead=9, running=1) == 1


@given(durations, st.lists(durations, min_size=1))
def test_running_mean_stays_in_range_and_converges(first: float, later: list[float]) -> None:
    mean = first
    for newest in later:
        mean = running_mean(mean, newest)
    lowest, highest = min(first, *later), max(first, *later)
    assert lowest * (1 - 1e-9) <= mean <= highest * (1 + 1e-9)
    for _ in range(50):
        mean = running_mean(mean, later[-1])
    assert abs(mean - later[-1]) <= (highest - lowest) * 1e-3 + sys.float_info.min
