"""`ring.batching`: every step once, oldest first, and enough micro-batches to keep every stage of a ring busy."""

from __future__ import annotations

from collections import deque
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.openings import Opening
from cluster.sampling import SamplingParams
from ring.batching import InFlightBatches, MicroBatches, micro_batch_size, prompt_chunks
from ring.prefix_cache import BLOCK
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
def test_pop_batch_keeps_micro_batches_together(sizes: list[int]) -> None:
    steps, batches = filled(sizes)
    assert [steps.pop_batch() for _ in batches] == batches
    assert steps.pop_batch() == []
    assert not steps


@given(arrivals, st.integers(1, 8))
def test_pop_steps_returns_each_step_once_in_order(sizes: list[int], most: int) -> None:
    steps, batches = filled(sizes)
    dealt = []
    while steps:
        dealt.append(steps.pop_steps(most))
    assert [number for batch in dealt for number in batch] == [number for batch in batches for number in batch]
    assert all(1 <= len(batch) <= most for batch in dealt)
    assert all(len(batch) == most for batch in dealt[:-1])


@given(st.integers(0, 500), st.integers(1, 8))
def test_micro_batches_are_enough_for_every_stage(sessions: int, stages: int) -> None:
    most = micro_batch_size(sessions, stages)
    assert most >= 1
    assert most * stages >= sessions
    assert (most - 1) * stages < max(sessions, 1)


def test_skipped_last_step_completes_the_micro_batch() -> None:
    steps: MicroBatches[str] = MicroBatches()
    steps.skip_step(2)
    assert not steps.incomplete
    steps.add("first", 1)
    steps.skip_step(0)
    assert steps.pop_batch() == ["first"]
    assert not steps.incomplete


def test_micro_batch_waits_until_complete() -> None:
    steps: MicroBatches[str] = MicroBatches()
    steps.add("first", 2)
    assert (steps.incomplete, bool(steps)) == (True, False)
    steps.add("second", 1)
    assert steps.pop_batch() == []
    steps.complete()
    assert (steps.incomplete, bool(steps)) == (False, True)
    assert steps.pop_batch() == ["first", "second"]


def prefilling(session: int, prompt: int, touched_at: float = 0.0, sent: int = 0) -> StageSession:
    opening = Opening((1,) * prompt, prompt, 1, frozenset(), SamplingParams(), ())
    return StageSession(session, session, opening, touched_at, sent=sent)


prompts = st.lists(
    st.tuples(st.integers(1, 300), st.integers(0, 299)).filter(lambda pair: pair[1] < pair[0]), max_size=8
)


@given(prompts, st.sampled_from([2 * BLOCK, 4 * BLOCK]), st.integers(-100, 300))
def test_prompt_chunks_stay_within_rows_and_room(sizes: list[tuple[int, int]], rows: int, room: int) -> None:
    sessions = [prefilling(at, size, float(at % 3), sent) for at, (size, sent) in enumerate(sizes)]
    chosen = prompt_chunks(sessions, rows, room)
    assert sum(count for _, count in chosen) <= max(min(rows, room), 0)
    assert all(0 < count <= min(session.prompt_left, rows) for session, count in chosen)
    assert all(count in (session.prompt_left, rows, rows - BLOCK) for session, count in chosen)
    assert all(session.prompt_left - count != 1 for session, count in chosen)
    assert chosen or not sessions or room < rows


@pytest.mark.parametrize(("size", "chunks"), [(64, [64]), (65, [32, 33]), (66, [64, 2]), (129, [64, 32, 33])])
def test_prompt_is_cut_without_a_lone_token(size: int, chunks: list[int]) -> None:
    sent = 0
    for expected in chunks:
        ((_, count),) = prompt_chunks([prefilling(0, size, 0.0, sent)], 64, 64)
        assert count == expected
        sent += count
    assert sent == size


def test_oldest_prompt_goes_first_and_short_ones_share() -> None:
    sessions = [prefilling(1, 200, 5.0), prefilling(2, 10, 1.0), prefilling(3, 20, 3.0), prefilling(4, 40, 4.0)]
    assert [(session.id, count) for session, count in prompt_chunks(sessions, 64, 192)] == [(2, 10), (3, 20)]


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 3), st.randoms(use_true_random=False))
def test_scattered_steps_merge_into_whole_micro_batches(stages: int, rows: int, fewer: int, random: Random) -> None:
    sessions = max(stages * rows - fewer, 1)
    most = micro_batch_size(sessions, stages)
    steps: MicroBatches[int] = MicroBatches()
    in_flight, ring = InFlightBatches(stages), deque([session] for session in range(sessions))
    for batch in ring:  # each session alone, as after their prompts
        in_flight.add(batch)
    for _ in range(20 * sessions):
        back = ring.popleft()
        in_flight.returned(random.choice(back))
        for at, session in enumerate(back, 1):
            steps.add(session, len(back) - at)
        while in_flight.may_deal(len(steps), most):
            ring.append(steps.pop_steps(most))
            in_flight.add(ring[-1])
        assert ring, "all steps wait for others"
    assert len(ring) + bool(steps) <= stages
    assert sum(map(len, ring)) + len(steps) == sessions


def test_lost_micro_batch_counts_until_another_returns() -> None:
    in_flight = InFlightBatches(2)
    in_flight.add([1, 2])
    in_flight.add([3])
    assert not in_flight.may_deal(1, 2)
    assert in_flight.may_deal(2, 2), "a whole one never waits"
    in_flight.returned(3)
    in_flight.add([4])
    assert in_flight.may_deal(1, 2)
    in_flight.add([5, 6])
    in_flight.discard(5)
    assert not in_flight.may_deal(1, 2)
    in_flight.discard(6)
    assert in_flight.may_deal(1, 2)
    assert not in_flight.may_deal(0, 2)
