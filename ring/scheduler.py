"""Which micro-batch the first stage of a ring computes next: decode steps dealt out, prompts cut into chunks."""

from __future__ import annotations

import numpy as np

from ring.batching import InFlightBatches, micro_batch_size, prompt_chunks
from ring.sessions import StageSession, StageSessions
from ring.step_queue import StepQueue
from ring.steps import Step

PROMPT_CHUNK = 64  # tokens: long enough for a matrix product, short enough not to stop others for long


class Scheduler:
    """Deals the decode steps of `queue`, and cuts the prompts of `sessions`, for a ring of `stages`."""

    def __init__(self, sessions: StageSessions, queue: StepQueue, stages: int) -> None:
        self._sessions = sessions
        self._queue = queue
        self._stages = stages
        self._in_flight = InFlightBatches(stages)

    @property
    def busy(self) -> bool:
        """Whether there is something to compute now."""
        size = micro_batch_size(self._sessions.decoding, self._stages)
        return self._in_flight.may_deal(len(self._queue.decode), size) or bool(self._due_chunks())

    def next_steps(self) -> list[Step]:
        """Return a micro-batch of decode steps; empty if none is due."""
        size = micro_batch_size(self._sessions.decoding, self._stages)
        if not self._in_flight.may_deal(len(self._queue.decode), size):
            return []
        batch = self._queue.pop_decode_steps(size)
        if batch:
            self._in_flight.add(step.session.id for step in batch)
        return batch

    def next_prompts(self) -> list[Step]:
        """Return a micro-batch of prompt chunks; empty if none is due."""
        steps = []
        for session, rows in self._due_chunks():
            position = session.sent
            tokens = np.asarray(self._sessions.take_prompt(session, rows), np.int32)
            steps.append(Step(session, position, tokens, samples=session.prompt_left == 0))
        return steps

    def returned(self, session: StageSession) -> None:
        """Note that a session's token came round the ring."""
        self._in_flight.returned(session.id)

    def discard(self, session_id: int) -> None:
        """Wait no longer for the step of a session that is over."""
        self._in_flight.discard(session_id)

    def _due_chunks(self) -> list[tuple[StageSession, int]]:
        if not self._sessions.prefilling:
            return []
        # A chunk on every stage and one that waits keep the ring busy; more would only wait, before decode steps.
        room = PROMPT_CHUNK * (self._stages + 1) - self._sessions.in_flight
        return prompt_chunks(self._sessions.prefilling.values(), PROMPT_CHUNK, room)
