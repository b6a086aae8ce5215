"""One stage's part of the data plane: frames in, micro-batches through the engine, frames out.

Decode steps of running sessions come before the next prompt chunk of any other. Tokens go to the first stage (the
ring closes) and to the gateway; text is unknown here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import msgspec
import numpy as np

from bus.frame import Flag, Frame
from bus.ring import Array, NeighbourGone, Ring, best_endpoint
from cluster.batching import MicroBatches, micro_batch
from cluster.placement import Instance
from cluster.sessions import Opening, StageSession, StageSessions
from cluster.shard import Shard
from engines.engine import Chunk, EngineError, InferenceEngine
from engines.sampling import sample

logger = logging.getLogger(__name__)

PROMPT_CHUNK = 128  # tokens: long enough for a matrix product, short enough not to stop others for long
IDLE_S = 120.0  # a session nothing was heard of for so long lost a frame somewhere
REAP_EVERY_S = 1.0
IDLE_WAIT_MS = 1000
REST_WAIT_MS = 50  # for the rest of a micro-batch: it was sent in one go, so what is late is lost

_encode = msgspec.msgpack.Encoder().encode
_decode_opening = msgspec.msgpack.Decoder(Opening).decode


@dataclass(frozen=True, slots=True)
class StageCounts:
    """What a stage did since it was loaded."""

    sessions: int = 0
    forwards: int = 0
    rows: int = 0
    busy_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Neighbours:
    """A stage's place in its ring: its index among how many, the end points of the next stage and of the first."""

    index: int
    stages: int
    following: str
    first: str


def neighbours(instance: Instance, actor: str) -> Neighbours:
    """Find the stage of `actor` in an instance. Raises StopIteration where it is not a member."""
    index = next(i for i, stage in enumerate(instance.stages) if stage.actor == actor)
    following = instance.stages[(index + 1) % len(instance.stages)]
    return Neighbours(
        index, len(instance.stages), best_endpoint(following.endpoints), best_endpoint(instance.stages[0].endpoints)
    )


@dataclass(slots=True, eq=False)
class Step:
    """One session's share of a micro-batch: rows that continue it at `position`. The `last` row is sampled."""

    session: StageSession
    position: int
    inputs: Array
    last: bool
    spent_ns: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """A sampled token, as the payload that carries it."""

    session: StageSession
    position: int
    payload: Array
    finished: bool
    spent_ns: int


class Stage:
    """The sessions of one shard. One thread makes it, joins it to its ring and calls `turn` over and over."""

    def __init__(self, engine: InferenceEngine, shard: Shard, epoch: int, ring: Ring) -> None:
        self.counts = StageCounts()
        self._engine = engine
        self._shard = shard
        self._epoch = epoch
        self._ring = ring
        self._place = Neighbours(0, 1, "", "")
        self._sessions = StageSessions()
        self._steps: MicroBatches[Step] = MicroBatches()
        self._fragments: dict[int, list[Array]] = {}
        self._drained: Future[None] | None = None
        self._reap_at = 0.0

    @property
    def dropped(self) -> dict[str, int]:
        """Frames that were refused or missed, by reason. May be read from any thread."""
        return dict(self._ring.dropped)

    def connect(self, place: Neighbours) -> None:
        """Take a place in the ring. Raises ValueError for what is no end point."""
        self._place = place
        for endpoint in (place.following, place.first):
            self._ring.introduce(endpoint)

    def drain(self, drained: Future[None]) -> None:
        """Take no new sessions; `drained` is done when the last one here is over."""
        self._drained = drained
        self._count(0, 0)

    def turn(self) -> None:
        """All frames that are here, then one micro-batch of decode steps, then one prompt chunk.

        Waits for at most a second where there is nothing to do, less when the ring is woken.
        """
        self._take_frames()
        self._reap(time.monotonic())
        if batch := self._next_batch():
            self._compute(batch)
        if (session := self._sessions.with_prompt_left()) is not None:
            position, tokens = session.pending.popleft()
            self._compute([Step(session, position, np.asarray(tokens, np.int32), not session.pending)])

    def _take_frames(self) -> None:
        """What is here now; and of a micro-batch that has begun to come, the rest."""
        busy = self._steps or self._sessions.with_prompt_left()
        received = self._ring.receive(0 if busy else IDLE_WAIT_MS)
        while received is not None:
            self._serve(*received)
            received = self._ring.receive(REST_WAIT_MS if self._steps.incomplete else 0)
        self._steps.complete()

    def _next_batch(self) -> list[Step]:
        batch = (
            self._steps.next_dealt(micro_batch(self._sessions.decoding, self._place.stages))
            if self._shard.is_first
            else self._steps.next_whole()
        )
        return [step for step in batch if step.session.session in self._sessions.by_id]

    def _serve(self, frame: Frame, payload: Array) -> None:
        if frame.epoch != self._epoch:
            self._ring.dropped["another epoch"] += 1
        elif frame.flags & Flag.OPEN:
            self._open(frame, payload)
        elif (session := self._sessions.by_id.get(frame.session)) is None:
            self._miss(frame)
        elif frame.flags & Flag.CLOSE:
            self._close(session, onward=True)
        else:
            self._continue(session, frame, payload)

    def _miss(self, frame: Frame) -> None:
        """A frame of a session that is over here. A close walks on until nobody knows the session."""
        if not frame.flags & Flag.CLOSE:
            self._ring.dropped["no such session"] += 1
            self._steps.skip(frame.rest)

    def _open(self, frame: Frame, payload: Array) -> None:
        try:
            opening = _decode_opening(payload.tobytes())
            reply_to = best_endpoint(opening.reply_to)
            self._ring.introduce(reply_to)
            session = self._sessions.open(frame.session, opening, PROMPT_CHUNK, time.monotonic())
        except (msgspec.DecodeError, KeyError, ValueError):
            self._ring.dropped["opening"] += 1
            return
        session.reply_to = reply_to
        if self._drained and self._shard.is_first:
            self._fail(session, "this instance is being replaced; ask again")
        elif not self._shard.is_last:
            self._send(session, self._place.following, self._frame(session, Flag.OPEN), _encode(opening.onward()))

    def _continue(self, session: StageSession, frame: Frame, payload: Array) -> None:
        """Hidden states from the stage before, or the ring's own token on the first stage."""
        parts = self._fragments.setdefault(frame.session, [])
        parts.append(payload)
        if payload.shape[1:] != parts[0].shape[1:] or payload.dtype != parts[0].dtype:
            self._fail(session, "the parts of a chunk do not fit together; ask again")
            return
        if frame.flags & Flag.MORE:
            return
        del self._fragments[frame.session]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        first_row = frame.position + frame.rows - len(rows)
        token = bool(frame.flags & Flag.TOKEN)
        last, spent = token or bool(frame.flags & Flag.LAST), 0 if token else frame.compute_ns
        self._steps.add(Step(session, first_row, rows, last, spent), frame.rest)

    def _compute(self, batch: list[Step]) -> None:
        """A micro-batch through the engine, and on to the next stage or into tokens."""
        begun = time.monotonic_ns()
        try:
            outputs = self._engine.forward([self._chunk(step) for step in batch])
        except EngineError as error:
            self._one_by_one(batch, str(error))
            return
        spent = time.monotonic_ns() - begun
        self._count(sum(len(step.inputs) for step in batch), spent)
        for step in batch:
            step.session.touched_at = time.monotonic()
            step.spent_ns += spent
        if self._shard.is_last:
            self._choose([(step, output) for step, output in zip(batch, outputs, strict=True) if step.last])
        else:
            self._pass_on(batch, outputs)

    def _chunk(self, step: Step) -> Chunk:
        return Chunk(step.session.slot, step.position, step.inputs, wants_logits=step.last and self._shard.is_last)

    def _one_by_one(self, batch: list[Step], sentence: str) -> None:
        """A micro-batch that was refused: only the session that is at fault shall end."""
        if len(batch) == 1:
            self._fail(batch[0].session, sentence)
            return
        for step in batch:
            self._compute([step])

    def _pass_on(self, batch: list[Step], outputs: Sequence[Array]) -> None:
        for at, (step, output) in enumerate(zip(batch, outputs, strict=True), 1):
            flags, rest = Flag.LAST if step.last else 0, len(batch) - at
            frame = self._frame(step.session, flags, step.position, step.spent_ns, rest)
            self._send(step.session, self._place.following, frame, output)

    def _choose(self, answers: Sequence[tuple[Step, Array]]) -> None:
        """Sample a token for each; they go round the ring where the generation goes on, and then to the gateways."""
        chosen = [choice for step, logits in answers if (choice := self._sample(step, logits))]
        going_on = [choice for choice in chosen if not choice.finished]
        for at, choice in enumerate(going_on, 1):
            self._close_ring(choice, rest=len(going_on) - at)
        for choice in chosen:
            flags = Flag.TOKEN | Flag.FINISHED if choice.finished else Flag.TOKEN
            frame = self._frame(choice.session, flags, choice.position, choice.spent_ns)
            self._send(choice.session, choice.session.reply_to, frame, choice.payload)

    def _sample(self, step: Step, logits: Array) -> Choice | None:
        session, begun = step.session, time.monotonic_ns()
        position = step.position + len(step.inputs)
        try:
            token = sample(logits.astype(np.float32, copy=False), session.opening.sampling, position)
        except EngineError as error:
            self._fail(session, str(error))
            return None
        finished = session.opening.finish_reason(token, position - session.opening.prompt_tokens)
        spent = step.spent_ns + time.monotonic_ns() - begun
        return Choice(session, position, np.array([token], np.int32), bool(finished), spent)

    def _close_ring(self, choice: Choice, rest: int) -> None:
        """The token goes to the first stage, which in a ring of one is here."""
        if self._shard.is_first:
            self._steps.add(Step(choice.session, choice.position, choice.payload, True), rest)
        else:
            frame = self._frame(choice.session, Flag.TOKEN, choice.position, choice.spent_ns, rest)
            self._send(choice.session, self._place.first, frame, choice.payload)

    def _send(self, session: StageSession, endpoint: str, frame: Frame, payload: Array | bytes) -> None:
        """Send, or end the session where the neighbour is gone; nothing is sent for one that has ended."""
        if session.session not in self._sessions.by_id:
            return
        try:
            self._ring.send(endpoint, frame, payload)
        except NeighbourGone as error:
            self._fail(session, f"stage {self._place.index} lost its neighbour: {error}")

    def _fail(self, session: StageSession, sentence: str) -> None:
        """Tell the gateway in one sentence, and close the session here and further on."""
        if session.session not in self._sessions.by_id:
            return
        logger.warning("session %x: %s", session.session, sentence)
        self._close(session, onward=True)
        try:
            self._ring.send(session.reply_to, self._frame(session, Flag.FAILED), sentence.encode())
        except NeighbourGone:
            self._ring.dropped["gateway gone"] += 1

    def _close(self, session: StageSession, *, onward: bool) -> None:
        """Free the slot; the close frame walks on until it is back at a stage that knows nothing of the session."""
        self._sessions.close(session.session)
        self._fragments.pop(session.session, None)
        self._engine.release(session.slot)
        self._count(0, 0)
        if onward and not (self._shard.is_first and self._shard.is_last):
            try:
                self._ring.send(self._place.following, self._frame(session, Flag.CLOSE), b"")
            except NeighbourGone:
                self._ring.dropped["neighbour gone"] += 1

    def _reap(self, now: float) -> None:
        if now < self._reap_at:
            return
        self._reap_at = now + REAP_EVERY_S
        for session_id in self._sessions.idle_since(now - IDLE_S):
            session = self._sessions.by_id[session_id]
            self._fail(session, f"nothing was heard of this generation for {IDLE_S:g} s")

    def _frame(self, session: StageSession, flags: int, position: int = 0, spent_ns: int = 0, rest: int = 0) -> Frame:
        index = self._place.index
        return Frame(flags, self._epoch, session.session, position, stage=index, compute_ns=spent_ns, rest=rest)

    def _count(self, rows: int, spent_ns: int) -> None:
        held, sessions = self.counts, len(self._sessions.by_id)
        self.counts = StageCounts(
            sessions, held.forwards + bool(rows), held.rows + rows, held.busy_seconds + spent_ns / 1e9
        )
        if self._drained and not sessions and not self._drained.done():
            self._drained.set_result(None)
