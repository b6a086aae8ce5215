"""Micro-batches: every step once, oldest first, and enough of them to keep every stage of a ring busy."""

from __future__ import annotations

from collections import deque
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from cluster.openings import Opening
from cluster.sampling import SamplingParams
from ring.batching import MicroBatches, UnderWay, micro_batch, prompt_chunks
from ring.sessions import StageSession

arrivals = st.lists(st.integers(1, 6), max_size=12)  # the sizes of micro-batches that come in


def filled(sizes: list[int]) -> tuple[MicroBatches[int], list[list[int]]]:
    steps: MicroBatches[int] = MicroBatches()
    numbers = iter(range(10_000))
    batches = [[next(numbers) for _ in range(size)] for size in sizes]
    for batch in batches:
        for at, number in enumerate(batch, 1):
            steps.add(number, len(batch) - at)
    return steps, batches


@given(arrivals)
def test_a_later_stage_keeps_micro_batches_as_they_came(sizes: list[int]) -> None:
    steps, batches = filled(sizes)
    assert [steps.next_whole() for _ in batches] == batches
    assert steps.next_whole() == []
    assert not steps


@given(arrivals, st.integers(1, 8))
def test_the_first_stage_deals_every_step_once_in_order_and_never_too_many(sizes: list[int], most: int) -> None:
    steps, batches = filled(sizes)
    dealt = []
    while steps:
        dealt.append(steps.next_dealt(most))
    assert [number for batch in dealt for number in batch] == [number for batch in batches for number in batch]
    assert all(1 <= len(batch) <= most for batch in dealt)
    assert all(len(batch) == most for batch in dealt[:-1])


@given(st.integers(0, 500), st.integers(1, 8))
def test_there_is_a_micro_batch_for_every_stage_while_there_are_sessions_enough(sessions: int, stages: int) -> None:
    most = micro_batch(sessions, stages)
    assert most >= 1
    assert most * stages >= sessions
    assert (most - 1) * stages < max(sessions, 1)


def test_a_step_whose_session_is_over_ends_its_micro_batch_all_the_same() -> None:
    steps: MicroBatches[str] = MicroBatches()
    steps.skip(2)
    assert not steps.incomplete
    steps.add("first", 1)
    steps.skip(0)
    assert steps.next_whole() == ["first"]
    assert not steps.incomplete


def test_a_micro_batch_is_waited_for_until_its_rest_is_there_or_given_up() -> None:
    steps: MicroBatches[str] = MicroBatches()
    steps.add("first", 2)
    assert (steps.incomplete, bool(steps)) == (True, False)
    steps.add("second", 1)
    assert steps.next_whole() == []
    steps.complete()
    assert (steps.incomplete, bool(steps)) == (False, True)
    assert steps.next_whole() == ["first", "second"]


def reading(session: int, prompt: int, touched_at: float = 0.0, sent: int = 0) -> StageSession:
    opening = Opening((1,) * prompt, prompt, 1, frozenset(), SamplingParams(), ())
    return StageSession(session, session, opening, touched_at, sent=sent)


prompts = st.lists(
    st.tuples(st.integers(1, 300), st.integers(0, 299)).filter(lambda pair: pair[1] < pair[0]), max_size=8
)


@given(prompts, st.integers(1, 64), st.integers(-100, 300))
def test_prompt_chunks_stay_within_the_rows_and_the_room(sizes: list[tuple[int, int]], rows: int, room: int) -> None:
    sessions = [reading(at, size, float(at % 3), sent) for at, (size, sent) in enumerate(sizes)]
    chosen = prompt_chunks(sessions, rows, room)
    assert sum(count for _, count in chosen) <= max(min(rows, room), 0)
    assert all(count == min(session.prompt_left, rows) > 0 for session, count in chosen)
    assert chosen or not sessions or room < rows


def test_the_prompt_that_waited_longest_goes_first_and_short_ones_share_a_pass() -> None:
    sessions = [reading(1, 200, 5.0), reading(2, 10, 1.0), reading(3, 20, 3.0), reading(4, 40, 4.0)]
    assert [(session.session, count) for session, count in prompt_chunks(sessions, 64, 192)] == [(2, 10), (3, 20)]


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_ring_whose_steps_came_apart_finds_back_to_whole_micro_batches(
    stages: int, rows: int, fewer: int, random: Random
) -> None:
    sessions = max(stages * rows - fewer, 1)
    most = micro_batch(sessions, stages)
    steps: MicroBatches[int] = MicroBatches()
    under_way, ring = UnderWay(stages), deque([session] for session in range(sessions))
    for batch in ring:  # each session alone, as after their prompts
        under_way.dealt(batch)
    for _ in range(20 * sessions):
        back = ring.popleft()
        under_way.back(random.choice(back))
        for at, session in enumerate(back, 1):
            steps.add(session, len(back) - at)
        while under_way.may_deal(len(steps), most):
            ring.append(steps.next_dealt(most))
            under_way.dealt(ring[-1])
        assert ring, "all steps wait for others"
    assert len(ring) + bool(steps) <= stages
    assert sum(map(len, ring)) + len(steps) == sessions


def test_a_micro_batch_that_was_lost_counts_until_a_later_one_is_back_or_its_sessions_are_closed() -> None:
    under_way = UnderWay(2)
    under_way.dealt([1, 2])
    under_way.dealt([3])
    assert not under_way.may_deal(1, 2)
    assert under_way.may_deal(2, 2), "a whole one never waits"
    under_way.back(3)
    under_way.dealt([4])
    assert under_way.may_deal(1, 2)
    under_way.dealt([5, 6])
    under_way.close(5)
    assert not under_way.may_deal(1, 2)
    under_way.close(6)
    assert under_way.may_deal(1, 2)
    assert not under_way.may_deal(0, 2)
