"""Which micro-batch a stage computes next: `ring.batching` decides, on what waits here. No sockets, no engine."""

from __future__ import annotations

import numpy as np

from cluster.shard import Shard
from ring.batching import UnderWay, micro_batch, prompt_chunks
from ring.sessions import StageSession, StageSessions
from ring.step_queue import StepQueue
from ring.types import Step

PROMPT_CHUNK = 64  # tokens: long enough for a matrix product, short enough not to stop others for long


class Scheduler:
    """The first stage deals decode steps and cuts prompts, for a ring of `stages`; the others take what came together.

    Steps of sessions that are over are left out.
    """

    def __init__(self, shard: Shard, sessions: StageSessions, waiting: StepQueue, stages: int) -> None:
        self._shard = shard
        self._sessions = sessions
        self._waiting = waiting
        self._stages = stages
        self._under_way = UnderWay(stages)

    @property
    def busy(self) -> bool:
        """Whether anything could be computed now."""
        return bool((self._may_deal() if self._shard.is_first else self._waiting) or self._due_chunks())

    def next_steps(self) -> list[Step]:
        """A micro-batch of decode steps; empty where none is due."""
        if not self._shard.is_first:
            return self._living(self._waiting.steps.next_whole())
        if not self._may_deal():
            return []
        batch = self._living(self._waiting.steps.next_dealt(self._most_steps()))
        if batch:
            self._under_way.dealt(step.session.session for step in batch)
        return batch

    def next_prompts(self) -> list[Step]:
        """A micro-batch of prompt chunks; empty where none is due."""
        if not self._shard.is_first:
            return self._living(self._waiting.prompts.next_whole())
        return [self._chunk(session, rows) for session, rows in self._due_chunks()]

    def back(self, session: StageSession) -> None:
        """A session's token came round the ring."""
        self._under_way.back(session.session)

    def close(self, session: StageSession) -> None:
        """A session is over."""
        self._under_way.close(session.session)

    def _may_deal(self) -> bool:
        return self._under_way.may_deal(len(self._waiting.steps), self._most_steps())

    def _most_steps(self) -> int:
        return micro_batch(self._sessions.decoding, self._stages)

    def _due_chunks(self) -> list[tuple[StageSession, int]]:
        if not self._sessions.reading:
            return []
        room = PROMPT_CHUNK * (self._stages + 1) - self._sessions.in_flight
        return prompt_chunks(self._sessions.reading.values(), PROMPT_CHUNK, room)

    def _chunk(self, session: StageSession, rows: int) -> Step:
        begin = session.sent
        tokens = np.asarray(self._sessions.read(session, rows), np.int32)
        return Step(session, begin, tokens, session.prompt_left == 0)

    def _living(self, batch: list[Step]) -> list[Step]:
        for step in batch:
            step.session.waiting -= 1
        return [step for step in batch if step.session.session in self._sessions.by_id]
