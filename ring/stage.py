"""One stage of a ring: frames in, micro-batches through the engine, frames out.

Decode steps of running sessions come before the next prompt chunks. What is decided for the whole ring is decided by
the first stage (`ring.ring_admission`), tokens are chosen by the last one (`ring.token_sampler`). Text is unknown here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future

import msgspec
import numpy as np

from bus.dataplane.access import owner_of, reply_endpoint
from bus.dataplane.frames import GATEWAY_STAGE, Flag, Frame
from bus.dataplane.transport import Array, NeighbourGone, Transport
from cluster.failures import FailureCode
from cluster.openings import Failure, Opening
from cluster.shard import Shard
from common.limits import UNREADABLE
from common.rate_limit import RateLimitedLogger
from engines.engine import MAX_SLOTS, EngineError, FloatArray, InferenceEngine
from ring.frame_policy import accepts, may_answer
from ring.frame_writer import FrameWriter, Outgoing
from ring.model_runner import ModelRunner
from ring.prefix_cache import BLOCK, CacheUpdate, PrefixLost
from ring.ring_admission import RingAdmission
from ring.scheduler import PROMPT_CHUNK, Scheduler
from ring.sessions import StageSession, StageSessions
from ring.step_queue import BadChunk, StepQueue
from ring.token_sampler import TokenSampler
from ring.types import NO_RING, RingView, Sampled, StageCounts, Step

logger = logging.getLogger(__name__)
limited = RateLimitedLogger(logger)

IDLE_S = 120.0  # a session nothing was heard of for so long lost a frame somewhere
IDLE_FURTHER_ON_S = 600.0  # a stage that is not the first does not know how long a prompt waits there
REAP_EVERY_S = 1.0
IDLE_WAIT_MS = 1000
FRAMES_A_TURN = 1024  # whoever sends without end shall not keep the engine waiting
REST_WAIT_MS = 50  # for the rest of a micro-batch: it was sent in one go, so what is late is lost
REPLACED = Failure(FailureCode.REPLACED, "this instance is being replaced; ask again", 1)

_decode_opening = msgspec.msgpack.Decoder(Opening).decode
_decode_keeping = msgspec.msgpack.Decoder(CacheUpdate).decode


class Stage:
    """The sessions of one shard. One thread makes it, joins it to its ring and calls `turn` over and over."""

    def __init__(self, engine: InferenceEngine, shard: Shard, epoch: int, ring: Transport) -> None:
        self._shard = shard
        self._epoch = epoch
        self._ring = ring
        self._in = StepQueue(PROMPT_CHUNK)
        self._activations = engine.activations
        self._out = FrameWriter(ring, epoch, NO_RING, self._activations)
        self._entrance = RingAdmission(0, MAX_SLOTS)
        self._last_stage = TokenSampler()
        self._passes = ModelRunner(engine, self._last_stage if shard.is_last else None)
        self._sessions = StageSessions(MAX_SLOTS)
        self._schedule = Scheduler(shard, self._sessions, self._in, 1)
        self._drained: Future[None] | None = None
        self._reap_at = 0.0

    @property
    def counts(self) -> StageCounts:
        """What the stage did so far. May be read from any thread."""
        return StageCounts(
            sessions=len(self._sessions.by_id),
            waiting=self._entrance.waiting,
            forwards=self._passes.forwards,
            rows=self._passes.rows,
            reused_rows=self._passes.reused_rows,
            stored_positions=len(self._passes.blocks) * BLOCK,
            drafted=self._last_stage.drafted,
            accepted=self._last_stage.accepted,
            busy_seconds=self._passes.busy_ns / 1e9,
        )

    @property
    def dropped(self) -> dict[str, int]:
        """Frames that were refused or missed, by reason. May be read from any thread."""
        return dict(self._ring.dropped)

    def connect(self, place: RingView) -> None:
        """Take a place in the ring. Raises ValueError for what is no end point."""
        for endpoint in (place.following, place.first):
            self._ring.introduce(endpoint)
        self._out = FrameWriter(self._ring, self._epoch, place, self._activations)
        self._entrance = RingAdmission(place.positions, MAX_SLOTS)
        self._last_stage.exact_rows = place.exact_rows
        self._schedule = Scheduler(self._shard, self._sessions, self._in, place.stages)

    def drain(self, drained: Future[None]) -> None:
        """Take no new sessions; `drained` is done when the last one here is over."""
        self._drained = drained
        for session, opening in self._entrance.leave_waiting():
            self._out.refused(session, opening, REPLACED)
        self._see_drained()

    def turn(self) -> None:
        """All frames that are here, then one micro-batch of decode steps, then one of prompt chunks.

        Waits for at most a second where there is nothing to do, less when the ring is woken.
        """
        self._take_frames()
        self._reap(time.monotonic())
        if self._shard.is_first:
            self._admit()
        if batch := self._schedule.next_steps():
            self._compute(batch)
        if batch := self._schedule.next_prompts():
            self._compute(batch)

    def _take_frames(self) -> None:
        """What is here now; and of a micro-batch that has begun to come, the rest."""
        received = self._ring.receive(0 if self._schedule.busy else IDLE_WAIT_MS)
        taken = 0
        while received is not None:
            self._serve(*received)
            taken += 1
            if taken == FRAMES_A_TURN:
                break
            received = self._ring.receive(REST_WAIT_MS if self._in.incomplete else 0)
        self._in.complete()

    # -- frames

    def _serve(self, frame: Frame, payload: Array, sender: str) -> None:
        if frame.epoch != self._epoch:
            self._ring.dropped["another epoch"] += 1
        elif not self._believes(frame, sender):
            self._ring.dropped["not from there"] += 1
        elif frame.flags & Flag.OPEN:
            self._hear_opening(frame, payload, sender)
        elif (session := self._sessions.by_id.get(frame.session)) is None:
            self._miss(frame)
        else:
            self._serve_session(session, frame, payload)

    def _serve_session(self, session: StageSession, frame: Frame, payload: Array) -> None:
        flags = frame.flags
        if flags & Flag.CLOSE:
            self._hear_close(session, frame)
        elif flags & Flag.TOKEN:
            self._hear_token(session, frame, payload)
        elif flags & Flag.THROUGH:
            session.through = max(session.through, min(frame.position, session.sent))
        elif flags & Flag.KEEP:
            self._hear_keeping(session, payload)
        else:
            self._hear_hidden(session, frame, payload)

    def _believes(self, frame: Frame, sender: str) -> bool:
        place = self._out.place
        if not frame.flags & (Flag.OPEN | Flag.CLOSE):  # every decode step
            return accepts(frame, sender, None, place, None)
        return accepts(frame, sender, self._ring.role_of(sender), place, self._owner(frame.session))

    def _owner(self, session: int) -> str | None:
        """The node that opened a session; None where it is not here."""
        if running := self._sessions.by_id.get(session):
            return running.owner
        waiting = self._entrance.opening(session)
        return owner_of(waiting.reply_to) if waiting else None

    def _miss(self, frame: Frame) -> None:
        """A frame of a session that is over here, or waits. A close walks on until nobody knows the session."""
        if frame.flags & Flag.CLOSE:
            self._entrance.leave(frame.session, time.monotonic())
        elif not frame.flags & Flag.FINISHED:  # the owner may be faster than the ring
            self._ring.dropped["no such session"] += 1
            self._in.skip(frame)

    def _hear_opening(self, frame: Frame, payload: Array, sender: str) -> None:
        try:
            opening = _decode_opening(payload.tobytes())
            opening.check()
            if not may_answer(sender, owner_of(opening.reply_to), self._out.place):
                self._ring.dropped["reply_to"] += 1
                return
            reply_to = reply_endpoint(opening.reply_to, self._ring.own_id)
            self._ring.introduce(reply_to)
            if self._shard.is_first:
                self._ask(frame.session, opening)
            else:
                self._enter(frame.session, opening, reply_to)
        except (*UNREADABLE, KeyError, ValueError):
            self._ring.dropped["opening"] += 1

    def _hear_token(self, session: StageSession, frame: Frame, tokens: Array) -> None:
        """The ring closes: a token, with drafts of what may follow, is the next step of its session."""
        if tokens.dtype != np.int32 or not session.due(frame.position, tokens.size):
            self._fail(session, Failure(FailureCode.FRAMES, "a token came that was not due; ask again"))
            return
        if session.through < session.opening.prompt_tokens <= frame.position:
            self._keep(session, session.opening.prompt)
        self._schedule.back(session)
        session.returned(frame.position, tokens.tolist())
        if not frame.flags & Flag.FINISHED:
            self._in.token(session, frame, tokens)

    def _hear_hidden(self, session: StageSession, frame: Frame, payload: Array) -> None:
        try:
            if session.waiting > self._out.place.stages + 1:  # more of a prompt than the first stage lets go
                raise BadChunk("more chunks came than were due; ask again")
            self._in.hidden(session, frame, payload)
        except BadChunk as error:
            self._fail(session, Failure(FailureCode.FRAMES, str(error)))

    def _hear_keeping(self, session: StageSession, payload: Array) -> None:
        try:
            self._passes.save(session, _decode_keeping(payload.tobytes()))
        except (*UNREADABLE, KeyError):
            self._ring.dropped["keeping"] += 1
            return
        except EngineError as error:
            self._fail(session, Failure(FailureCode.PREFIX_LOST, f"{error}; ask again", 1))
            return
        if not self._shard.is_last:
            self._onward(session, Flag.KEEP, payload.tobytes())

    def _hear_close(self, session: StageSession, frame: Frame) -> None:
        """From the owner, by way of the first stage; a close that comes to the first from the ring is a failure."""
        if self._shard.is_first and frame.stage != GATEWAY_STAGE:
            self._entrance.forget()
        elif self._shard.is_first and session.through >= session.opening.prompt_tokens:
            self._keep(session, session.tokens[: session.through])
        self._close(session)

    # -- beginnings

    def _ask(self, session: int, opening: Opening) -> None:
        """Into the queue, or back with a reason."""
        if failure := REPLACED if self._drained else self._entrance.ask(session, opening):
            self._out.refused(session, opening, failure)
        else:
            self._admit()

    def _admit(self) -> None:
        """Let in who fits, and tell who waits how many are ahead."""
        if not self._entrance.waiting:
            return
        now = time.monotonic()
        while admitted := self._entrance.admit(now):
            session, opening = admitted
            try:
                self._enter(session, opening, reply_endpoint(opening.reply_to, self._ring.own_id))
            except ValueError:  # the owner went away while it waited
                self._entrance.take_back(session, opening, now)
        for session, opening, ahead in self._entrance.places(now):
            if not self._out.place_in_queue(session, opening, ahead):
                self._entrance.leave(session, now)  # or every word to it would cost the ring a deadline

    def _enter(self, session_id: int, opening: Opening, reply_to: str) -> None:
        """A session begins here, with what the prefix cache has of it."""
        self._passes.blocks.drop(opening.drop)
        session = self._sessions.open(session_id, opening, time.monotonic())
        session.reply_to, session.owner = reply_to, owner_of(opening.reply_to)
        try:
            restored = self._passes.restore(session)
        except (PrefixLost, EngineError) as error:
            if self._shard.is_first:
                self._entrance.take_back(session_id, opening, time.monotonic())
            self._fail(session, Failure(FailureCode.PREFIX_LOST, f"{error}; ask again", 1))
            return
        if self._shard.is_first:
            self._sessions.begin(session, restored)
        if self._shard.is_last:
            self._last_stage.open(session)
            self._out.admitted(session, restored)  # from here, so that it comes before the first token
        else:
            self._onward(session, Flag.OPEN, msgspec.msgpack.encode(opening))

    def _keep(self, session: StageSession, tokens: Sequence[int]) -> None:
        """Have every stage store what stands at the session's first positions; all of them have computed it."""
        if keeping := self._entrance.keep(tokens):
            if not self._shard.is_last:
                self._onward(session, Flag.KEEP, msgspec.msgpack.encode(keeping))
            try:
                self._passes.save(session, keeping)
            except EngineError as error:
                limited.warning("storing", "session %x cannot be stored: %s", session.session, error)
                self._entrance.forget()

    # -- computing

    def _compute(self, batch: list[Step]) -> None:
        """A micro-batch through the engine, and on to the next stage or into tokens."""
        done = []
        for computed in self._passes.run(batch):
            if computed.output is None:
                self._fail(computed.step.session, Failure(FailureCode.ENGINE, computed.refused))
            else:
                done.append((computed.step, computed.output))
        if self._shard.is_last:
            self._choose(done)
            return
        for rest, (step, output) in zip(reversed(range(len(done))), done, strict=True):
            self._deliver(step.session, self._out.hidden(step, output, rest))

    def _choose(self, done: list[tuple[Step, FloatArray]]) -> None:
        """Tokens for each; they go round the ring where the generation goes on, and then to the gateways."""
        sampled = [(step, logits) for step, logits in done if step.last]
        chosen = [choice for step, logits in sampled if (choice := self._sample(step, logits, len(sampled)))]
        going_on = [choice for choice in chosen if not choice.finished]
        for at, choice in enumerate(going_on, 1):
            self._close_ring(choice, rest=len(going_on) - at)
        for choice in chosen:
            if choice.finished:  # the first stage hears of it before the owner closes
                self._close_ring(choice, rest=0)
            self._deliver(choice.session, self._out.tokens(choice))
        for step, _ in done:
            if not step.last:
                self._through(step)

    def _sample(self, step: Step, logits: FloatArray, in_batch: int) -> Sampled | None:
        try:
            return self._last_stage.choose(step, logits, in_batch)
        except EngineError as error:
            self._fail(step.session, Failure(FailureCode.ENGINE, str(error)))
            return None

    def _close_ring(self, choice: Sampled, rest: int) -> None:
        """The token goes to the first stage, which in a ring of one is here."""
        frame, tokens = self._out.ring_token(choice, rest)
        if self._shard.is_first:
            self._hear_token(choice.session, frame, tokens)
        else:
            self._deliver(choice.session, (self._out.place.first, frame, tokens))

    def _through(self, step: Step) -> None:
        if self._shard.is_first:
            step.session.through = step.end
        else:
            self._deliver(step.session, self._out.through(step))

    # -- endings

    def _onward(self, session: StageSession, flags: int, payload: bytes) -> None:
        self._deliver(session, self._out.onward(session, flags, payload))

    def _deliver(self, session: StageSession, mail: Outgoing) -> None:
        """Send, or end the session where the neighbour is gone; nothing is sent for one that has ended."""
        if session.session not in self._sessions.by_id:
            return
        try:
            self._ring.send(*mail)
        except NeighbourGone as error:
            self._fail(
                session, Failure(FailureCode.STAGE_FAILED, f"stage {self._out.place.index} lost its neighbour: {error}")
            )

    def _fail(self, session: StageSession, failure: Failure) -> None:
        """Tell the gateway in one sentence, and close the session here and further on."""
        if session.session not in self._sessions.by_id:
            return
        limited.warning(failure.code, "session %x: %s", session.session, failure.message)
        self._entrance.forget()
        self._close(session)
        if not self._shard.is_first:  # the stages between may not know the session, and would not pass the close on
            self._out.closed(session, self._out.place.first)
        self._out.failed(session.session, session.reply_to, failure)

    def _close(self, session: StageSession) -> None:
        """Free the slot; the close frame walks on until it is back at a stage that knows nothing of the session."""
        self._sessions.close(session.session)
        self._entrance.leave(session.session, time.monotonic())
        self._last_stage.close(session)
        self._in.close(session)
        self._schedule.close(session)
        self._passes.release(session)
        if self._out.place.stages > 1:
            self._out.closed(session, self._out.place.following)
        self._see_drained()

    def _reap(self, now: float) -> None:
        if now < self._reap_at:
            return
        self._reap_at = now + REAP_EVERY_S
        patience = IDLE_S if self._shard.is_first else IDLE_FURTHER_ON_S
        for session in self._sessions.idle_since(now - patience):
            self._fail(
                session, Failure(FailureCode.TIMEOUT, f"nothing was heard of this generation for {patience:g} s")
            )

    def _see_drained(self) -> None:
        if self._drained and not self._sessions.by_id and not self._drained.done():
            self._drained.set_result(None)
