"""What waits on a stage to be computed: rows put together from frames, decode steps apart from prompt chunks.

Which of it is due is decided in `ring.batching`; no sockets and no engine here.
"""

from __future__ import annotations

import numpy as np

from bus.dataplane.frames import Flag, Frame
from bus.dataplane.transport import Array
from cluster.openings import MOST_DRAFTS
from engines.activations import unpacked
from ring.batching import MicroBatches
from ring.sessions import StageSession
from ring.types import Step


class BadChunk(Exception):
    """The parts of a chunk do not fit together."""


class StepQueue:
    """The steps of a stage. A step never has more than `most_rows` rows."""

    def __init__(self, most_rows: int) -> None:
        self.steps: MicroBatches[Step] = MicroBatches()
        self.prompts: MicroBatches[Step] = MicroBatches()
        self._most_rows = most_rows
        self._parts: dict[int, list[Array]] = {}

    def __bool__(self) -> bool:
        return bool(self.steps or self.prompts)

    @property
    def incomplete(self) -> bool:
        """Whether the rest of a micro-batch has been announced."""
        return self.steps.incomplete or self.prompts.incomplete

    def complete(self) -> None:
        """Wait no longer for any rest."""
        self.steps.complete()
        self.prompts.complete()

    def skip(self, frame: Frame) -> None:
        """A frame came whose session is over here."""
        self.steps.skip(frame.rest)
        self.prompts.skip(frame.rest)

    def close(self, session: StageSession) -> None:
        """Forget what has come of a chunk."""
        self._parts.pop(session.session, None)

    def hidden(self, session: StageSession, frame: Frame, payload: Array) -> None:
        """Take in hidden states from the stage before. Raises BadChunk."""
        if payload.ndim != 2 or not len(payload):
            raise BadChunk("a chunk has no rows; ask again")
        rows = self._whole(session, frame, payload)
        if rows is None:
            return
        first = frame.position + frame.rows - len(rows)
        if first < 0 or frame.position + frame.rows > session.opening.positions + MOST_DRAFTS:
            raise BadChunk("a chunk is for positions that this generation does not have; ask again")
        last, rollback = bool(frame.flags & Flag.LAST), bool(frame.flags & Flag.ROLLBACK)
        step = Step(session, first, unpacked(rows), last, rollback, frame.compute_ns)
        queue = self.prompts if first < session.opening.prompt_tokens else self.steps
        queue.add(step, frame.rest)
        session.waiting += 1

    def token(self, session: StageSession, frame: Frame, tokens: Array) -> None:
        """Take in the ring's own token, with the drafts after it."""
        rollback = bool(frame.flags & Flag.ROLLBACK)
        self.steps.add(Step(session, frame.position, tokens, True, rollback), frame.rest)
        session.waiting += 1

    def _whole(self, session: StageSession, frame: Frame, payload: Array) -> Array | None:
        """The rows of a chunk, once the last of its frames is here."""
        held = self._parts.get(session.session)
        if held is None and not frame.flags & Flag.MORE:  # every decode step
            self._check_rows(len(payload))
            return payload
        parts = self._parts.setdefault(session.session, [])
        parts.append(payload)
        if payload.shape[1:] != parts[0].shape[1:] or payload.dtype != parts[0].dtype:
            raise BadChunk("the parts of a chunk do not fit together; ask again")
        self._check_rows(sum(len(part) for part in parts))
        if frame.flags & Flag.MORE:
            return None
        return np.concatenate(self._parts.pop(session.session))

    def _check_rows(self, rows: int) -> None:
        if rows > self._most_rows:
            raise BadChunk(f"a chunk has more than {self._most_rows} rows; ask again")
