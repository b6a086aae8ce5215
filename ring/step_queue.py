"""The steps that wait on a stage: rows put together from frames, decode steps apart from prompt chunks."""

from __future__ import annotations

import numpy as np

from bus.dataplane.frames import Flag, Frame, Payload
from cluster.openings import MAX_DRAFTS
from engines.activations import unpacked
from ring.batching import MicroBatches
from ring.sessions import StageSession, StageSessions
from ring.steps import Step


class BadChunk(Exception):
    """Hidden states or tokens that cannot be the next ones of their session; the message is one sentence."""


class StepQueue:
    """The steps of a stage's `sessions`. A step never has more than `most_rows` rows."""

    def __init__(self, sessions: StageSessions, most_rows: int) -> None:
        self.decode: MicroBatches[Step] = MicroBatches()
        self.prompts: MicroBatches[Step] = MicroBatches()
        self._sessions = sessions
        self._most_rows = most_rows
        self._parts: dict[int, list[Payload]] = {}  # of chunks that came in part

    def __bool__(self) -> bool:
        return bool(self.decode or self.prompts)

    @property
    def incomplete(self) -> bool:
        """Whether the rest of a micro-batch has been announced."""
        return self.decode.incomplete or self.prompts.incomplete

    def complete(self) -> None:
        """Wait no longer for the rest of a micro-batch."""
        self.decode.complete()
        self.prompts.complete()

    def skip_frame(self, frame: Frame) -> None:
        """Count the frame of a session that is over as received."""
        self.decode.skip_step(frame.rest)
        self.prompts.skip_step(frame.rest)

    def discard_parts(self, session: StageSession) -> None:
        """Discard the received parts of a session's chunk."""
        self._parts.pop(session.id, None)

    def add_hidden(self, session: StageSession, frame: Frame, payload: Payload) -> None:
        """Add hidden states (rows, width) from the stage before. Raises BadChunk."""
        if payload.ndim != 2 or not len(payload):
            raise BadChunk("a chunk has no rows; try again")
        rows = self._whole(session, frame, payload)
        if rows is None:
            return
        first, end = frame.position + frame.rows - len(rows), frame.position + frame.rows
        if first < 0 or end > session.opening.positions + MAX_DRAFTS:
            raise BadChunk("a chunk is for positions that this generation does not have; try again")
        samples, rollback = bool(frame.flags & Flag.SAMPLE), bool(frame.flags & Flag.ROLLBACK)
        step = Step(session, first, unpacked(rows), samples, rollback, frame.compute_ns)
        batches = self.prompts if first < session.opening.first_position else self.decode
        batches.add(step, frame.rest)
        session.pending += 1

    def add_token(self, session: StageSession, frame: Frame, tokens: Payload) -> None:
        """Add a token that came round the ring, with the drafts after it."""
        rollback = bool(frame.flags & Flag.ROLLBACK)
        self.decode.add(Step(session, frame.position, tokens, True, rollback), frame.rest)
        session.pending += 1

    def pop_decode(self) -> list[Step]:
        """Remove and return the oldest micro-batch of decode steps, without those of sessions that are over."""
        return self._living(self.decode.pop_batch())

    def pop_decode_steps(self, most: int) -> list[Step]:
        """Remove and return the oldest decode steps, at most `most`, without those of sessions that are over."""
        return self._living(self.decode.pop_steps(most))

    def pop_prompts(self) -> list[Step]:
        """Remove and return the oldest micro-batch of prompt chunks, without those of sessions that are over."""
        return self._living(self.prompts.pop_batch())

    def _living(self, batch: list[Step]) -> list[Step]:
        for step in batch:
            step.session.pending -= 1
        return [step for step in batch if step.session.id in self._sessions.by_id]

    def _whole(self, session: StageSession, frame: Frame, payload: Payload) -> Payload | None:
        """Return the rows of a chunk once the last of its frames is here."""
        held = self._parts.get(session.id)
        if held is None and not frame.flags & Flag.MORE:  # every decode step
            self._check_rows(len(payload))
            return payload
        parts = self._parts.setdefault(session.id, [])
        parts.append(payload)
        if payload.shape[1:] != parts[0].shape[1:] or payload.dtype != parts[0].dtype:
            raise BadChunk("the parts of a chunk do not fit together; try again")
        self._check_rows(sum(len(part) for part in parts))
        if frame.flags & Flag.MORE:
            return None
        return np.concatenate(self._parts.pop(session.id))

    def _check_rows(self, rows: int) -> None:
        if rows > self._most_rows:
            raise BadChunk(f"a chunk has more than {self._most_rows} rows; try again")
