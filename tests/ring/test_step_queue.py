"""`ring.step_queue`: rows put together from frames, within bounds."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bus.dataplane.frames import Flag, Frame
from cluster.openings import MAX_DRAFTS, Opening
from cluster.sampling import SamplingParams
from ring.scheduler import PROMPT_CHUNK
from ring.sessions import StageSessions
from ring.step_queue import BadChunk, StepQueue

PROMPT = (1,) * 60


def opening() -> Opening:
    return Opening(PROMPT, len(PROMPT), 20, frozenset(), SamplingParams(), ())


def test_prompt_chunks_and_decode_steps_wait_apart() -> None:
    sessions = StageSessions()
    session, queue = sessions.add(1, opening(), 0.0), StepQueue(sessions, PROMPT_CHUNK)
    for position, rows in ((0, 60), (60, 1)):
        frame = Frame(Flag.SAMPLE, 1, 1, position, rows)
        queue.add_hidden(session, frame, np.zeros((rows, 2), np.float32))
    assert session.pending == 2
    assert [(step.position, step.end, step.samples) for step in queue.pop_prompts()] == [(0, 60, True)]
    assert [(step.position, step.end) for step in queue.pop_decode()] == [(60, 61)]
    assert (session.pending, bool(queue)) == (0, False)


def test_steps_of_closed_sessions_are_left_out() -> None:
    sessions = StageSessions()
    queue = StepQueue(sessions, PROMPT_CHUNK)
    for number in (1, 2, 3):
        token = Frame(Flag.TOKEN, 1, number, len(PROMPT), 1, rest=3 - number)
        queue.add_token(sessions.add(number, opening(), 0.0), token, np.array([7], np.int32))
    sessions.remove(2)
    assert [step.session.id for step in queue.pop_decode_steps(8)] == [1, 3]


def test_parts_are_joined_to_one_step() -> None:
    sessions = StageSessions()
    session, queue = sessions.add(1, opening(), 0.0), StepQueue(sessions, PROMPT_CHUNK)
    for position, flags in ((4, Flag.MORE), (6, Flag.MORE), (8, 0)):
        rows = np.full((2, 3), position, np.float32)
        queue.add_hidden(session, Frame(flags, 1, 1, position, 2), rows)
    (step,) = queue.pop_prompts()
    assert step.position == 4
    assert step.inputs[:, 0].tolist() == [4, 4, 6, 6, 8, 8]


@given(st.lists(st.tuples(st.integers(0, 70), st.booleans(), st.integers(0, 90)), max_size=40))
def test_queue_holds_at_most_one_chunk_of_parts(parts: list[tuple[int, bool, int]]) -> None:
    sessions = StageSessions()
    session, queue = sessions.add(1, opening(), 0.0), StepQueue(sessions, PROMPT_CHUNK)
    for rows, more, position in parts:
        frame = Frame(Flag.MORE if more else 0, 1, 1, position, rows)
        try:
            queue.add_hidden(session, frame, np.zeros((rows, 2), np.float32))
        except BadChunk:
            queue.discard_parts(session)
        held = queue._parts.get(1, [])
        assert sum(len(part) for part in held) <= PROMPT_CHUNK
        assert len(held) <= PROMPT_CHUNK
        for step in queue.pop_decode() + queue.pop_prompts():
            assert 1 <= len(step.inputs) <= PROMPT_CHUNK
            assert 0 <= step.position <= step.end <= session.opening.positions + MAX_DRAFTS
