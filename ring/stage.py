"""One stage of a ring: frames in, micro-batches through the engine, frames out.

This is what every stage does; what depends on its place in the ring is in its two roles (`ring.roles`). Text is unknown
here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

import msgspec

from bus.dataplane.access import owner_of, reply_endpoint
from bus.dataplane.frames import Flag, Frame, Payload
from bus.dataplane.transport import PeerUnreachable
from cluster.failures import FailureCode
from cluster.kv_budget import CacheBound
from cluster.openings import Opening, SessionFailure
from common.limits import UNREADABLE
from common.machine import memory, return_freed_memory
from common.rate_limit import RateLimitedLogger
from engines.errors import EngineError
from engines.settings import MAX_SLOTS
from ring.frame_writer import NO_SESSION, FrameWriter, Outgoing
from ring.loaded_shard import LoadedShard
from ring.model_runner import ModelRunner
from ring.prefix_cache import BLOCK, CacheReport, CacheUpdate, PrefixLost
from ring.ring_view import RingView
from ring.roles import InputRole, OutputRole
from ring.scheduler import PROMPT_CHUNK
from ring.sessions import SessionProgress, StageSession, StageSessions
from ring.step_queue import BadChunk, StepQueue
from ring.steps import StageCounts, Step

logger = logging.getLogger(__name__)
limited = RateLimitedLogger(logger)

CHECK_EVERY_S = 1.0
FIRST_SESSION_S = 5.0  # within it the session comes for which a stage was placed
IDLE_WAIT_MS = 1000
FRAMES_A_TURN = 1024  # a peer that sends without end must not keep the engine waiting
REST_WAIT_MS = 50  # for the rest of a micro-batch: its frames were sent together, so one that is late is lost
MAX_FAILED_PASSES = 3  # in a row, for an unknown reason: then the engine is broken (its device is lost, no memory)

P = ParamSpec("P")
T = TypeVar("T")

_decode_opening = msgspec.msgpack.Decoder(Opening).decode


class Stage:
    """The sessions of one shard. One thread creates it and calls `turn` over and over.

    Its parts are public for its roles. What is done for a session is done by `attempt`: an exception ends the session,
    and no other one. An exception anywhere else ends the thread.
    """

    def __init__(
        self,
        shard: LoadedShard,
        ring: RingView,
        input_role: Callable[[Stage], InputRole],
        output_role: Callable[[Stage], OutputRole],
    ) -> None:
        """Connect to the next and the first stage. Raises ValueError if an endpoint is malformed or not linked."""
        for endpoint in (ring.next_endpoint, ring.first_endpoint):
            shard.transport.connect(endpoint)
        self.ring = ring
        self.transport = shard.transport
        self.frames = FrameWriter(shard.transport, shard.epoch, ring, shard.engine.activations)
        self.sessions = StageSessions(MAX_SLOTS)
        self.queue = StepQueue(self.sessions, PROMPT_CHUNK)
        self.output = output_role(self)
        self.runner = ModelRunner(shard.engine, self.output.logits_wanted, self.attempt)
        self.input = input_role(self)
        self.turns = 0  # of receiving: how many times all frames that had come were handled
        self._epoch = shard.epoch
        self._computing: list[Step] = []
        self._drained: list[Future[None]] = []
        self._check_at = 0.0
        self._used_at = time.monotonic() + FIRST_SESSION_S
        self._cache_bound = CacheBound()
        self._position_bytes = shard.engine.position_bytes

    @property
    def counts(self) -> StageCounts:
        """What the stage did so far. May be read from any thread."""
        return StageCounts(
            sessions=len(self.sessions.by_id),
            waiting=self.input.waiting,
            forwards=self.runner.forwards,
            rows=self.runner.rows,
            reused_rows=self.runner.reused_rows,
            stored_positions=len(self.runner.blocks) * BLOCK,
            drafted=self.output.drafted,
            accepted=self.output.accepted,
            busy_seconds=self.runner.busy_ns / 1e9,
        )

    def progress_of(self, session_id: int) -> SessionProgress | None:
        """Return how far a session is here, None for one that is not known. May be called from any thread.

        Each look-up is atomic, and the values may be of different moments: a caller compares several answers.
        """
        session = self.sessions.by_id.get(session_id)
        if session is None:
            return SessionProgress(waiting=True) if self.input.waits(session_id) else None
        computing = any(step.session is session for step in self._computing)
        active = computing or session.pending > 0 or session_id in self.sessions.prefilling
        return SessionProgress(False, active, session.frames, session.sampled)

    @property
    def idle_s(self) -> float:
        """For how long it had no session; 0.0 if one runs, waits or is still to come. May be read from any thread."""
        in_use = self.sessions.by_id or self.input.waiting
        return 0.0 if in_use else max(time.monotonic() - self._used_at, 0.0)

    def drain(self, drained: Future[None]) -> None:
        """Take no new sessions; `drained` is done when the last one here is over."""
        self._drained.append(drained)
        self.input.drain()
        self._check_drained()

    def turn(self) -> None:
        """Handle all frames that are here, then compute one micro-batch of decode steps, then one of prompt chunks.

        Running sessions come first, so a long prompt delays their tokens by one chunk at most. If there is nothing to
        do, wait for a frame, at most IDLE_WAIT_MS, less if the transport is woken.
        """
        self._receive_frames()
        self._check(time.monotonic())
        self.input.admit()
        if batch := self.input.next_steps():
            self._compute(batch)
        if batch := self.input.next_prompts():
            self._compute(batch)

    def _receive_frames(self) -> None:
        """Handle the frames that are here, and wait for the rest of a micro-batch that has begun to come.

        Computing what is here already would split the micro-batch permanently, at the cost of a pass per round.
        """
        received = self.transport.receive(0 if self.input.busy else IDLE_WAIT_MS)
        count = 0
        while received is not None:
            self._receive(*received)
            count += 1
            if count == FRAMES_A_TURN:
                break
            received = self.transport.receive(REST_WAIT_MS if self.queue.incomplete else 0)
        self.queue.complete()
        self.turns += 1

    def _receive(self, frame: Frame, payload: Payload, sender: str) -> None:
        if frame.epoch != self._epoch:
            self.transport.dropped["another epoch"] += 1
        elif not self.input.accepts(frame, sender):
            self.transport.dropped["wrong sender"] += 1
        elif frame.flags & Flag.OPEN:
            self._receive_opening(frame, payload, sender)
        elif frame.flags & Flag.STORE:
            self.input.receive_store(frame, payload)
        elif (session := self.sessions.by_id.get(frame.session)) is None:
            self._receive_unknown(frame)
        elif frame.flags & Flag.CLOSE:
            self.attempt([session], self.input.closing, session, frame)
            self.close(session)
        else:
            session.frames += 1
            self.attempt([session], self.input.receive, session, frame, payload)

    def _receive_opening(self, frame: Frame, payload: Payload, sender: str) -> None:
        try:
            opening = _decode_opening(payload.tobytes())
            opening.check()
            if not self.input.may_reply_to(owner_of(opening.reply_to), sender):
                self.transport.dropped["reply_to"] += 1
                return
            reply_to = reply_endpoint(opening.reply_to, self.transport.own_id)
            self.transport.connect(reply_to)
            self.input.open(frame.session, opening, reply_to)
        except (*UNREADABLE, KeyError, ValueError):
            self.transport.dropped["opening"] += 1

    def _receive_unknown(self, frame: Frame) -> None:
        """Handle a frame of a session that waits, or that is over here. A CLOSE ends its way round the ring here."""
        if frame.flags & Flag.CLOSE:
            self.input.closed(frame.session)
        elif not frame.flags & Flag.FINISHED:  # the owner's CLOSE may overtake the last token on its way round
            self.transport.dropped["no such session"] += 1
            self.queue.skip_frame(frame)

    # -- for the roles

    def attempt(
        self, sessions: Sequence[StageSession], work: Callable[P, T], *arguments: P.args, **named: P.kwargs
    ) -> T | None:
        """Do something for these sessions and return its result. If it raises an exception, they fail; returns None.

        This is the failure policy of a stage, which is written only here.
        """
        try:
            return work(*arguments, **named)
        except Exception as error:
            failure = self._failure_of(error)
            if failure.code is FailureCode.INTERNAL:
                limited.exception(type(error).__name__, "%s", failure.message)
            for session in sessions:
                self.fail(session, failure)
            return None

    def start(self, session_id: int, opening: Opening, reply_to: str) -> bool:
        """Start a session with the prefix blocks that its opening names; returns False if it failed at once.

        Raises KeyError if the session is here already, and ValueError if no slot is free.
        """
        self.runner.blocks.drop(opening.drop, opening.drop_below)  # in any case: they count as dropped
        session = self.sessions.add(session_id, opening, time.monotonic())
        self._used_at = session.touched_at
        session.reply_to, session.owner = reply_to, owner_of(opening.reply_to)
        self.attempt([session], self._begin, session)
        if session_id in self.sessions.by_id:
            return True
        self.report_cache(lacks=True)  # or a stage after this one does, which did not get the opening
        return False

    def report_cache(self, *, lacks: bool) -> None:
        """Report to the first stage what this one may store, and if it or one after it lacks blocks."""
        self.input.report(CacheReport(self._cache_bound.nbytes // self._position_bytes, lacks))

    def store(self, session_id: int, update: CacheUpdate) -> bool:
        """Drop and store blocks, and have the next stage do the same, also if the session is over here.

        Returns whether this stage now holds the blocks that the update names, and the next one got it.
        """
        self.runner.blocks.drop(update.drop, update.drop_below)
        passed_on = self.output.store(session_id, update)
        if session_id == NO_SESSION:  # nothing takes the place of what was dropped
            return_freed_memory()
        session = self.sessions.by_id.get(session_id)
        saved = session and self.attempt([session], self.runner.save, session, update)
        return passed_on and bool(saved or not update.numbers)

    def send(self, session: StageSession, outgoing: Outgoing) -> None:
        """Send a session's frame, and end the session if it cannot be sent. Sends nothing for one that has ended."""
        if session.id in self.sessions.by_id:
            self.attempt([session], self.transport.send, *outgoing)

    def fail(self, session: StageSession, failure: SessionFailure) -> None:
        """Report to the gateway why, and close the session here and on the other stages."""
        if session.id not in self.sessions.by_id:
            return
        limited.warning(failure.code, "session %x: %s", session.id, failure.message)
        self.close(session)
        self.input.failed(session)
        self.frames.send_failure(session.id, session.reply_to, failure)

    def close(self, session: StageSession) -> None:
        """Free the slot. The CLOSE travels round the ring until it reaches a stage that does not know the session.

        A session that is closed already is no error.
        """
        if not self.sessions.remove(session.id):
            return
        self._used_at = time.monotonic()
        self.input.closed(session.id)
        self.queue.discard_parts(session)
        self.runner.release(session)
        self.output.closed(session)
        self._check_drained()

    # -- internal

    def _begin(self, session: StageSession) -> None:
        cached = self.runner.restore(session)
        self.input.started(session, cached)
        self.output.started(session, cached)

    def _compute(self, batch: list[Step]) -> None:
        """Compute a micro-batch and deliver it. Raises RuntimeError if the engine is broken."""
        self._computing = batch
        computed = self.attempt([step.session for step in batch], self.runner.run, batch)
        self.output.deliver(computed or [])
        self._computing = []
        if self.runner.failed_passes >= MAX_FAILED_PASSES:
            raise RuntimeError(f"the engine failed in {MAX_FAILED_PASSES} passes in a row; see the log above")

    def _failure_of(self, error: Exception) -> SessionFailure:
        """Return what a session's gateway is told of an exception. Nothing of an unknown one: it may quote the text."""
        match error:
            case EngineError():
                return SessionFailure(FailureCode.ENGINE, str(error))
            case PrefixLost():
                return SessionFailure(FailureCode.PREFIX_LOST, str(error), 1)
            case BadChunk():
                return SessionFailure(FailureCode.FRAMES, str(error))
            case PeerUnreachable():
                message = f"stage {self.ring.index} cannot send: {error}; try again"
                return SessionFailure(FailureCode.STAGE_FAILED, message)
        message = f"stage {self.ring.index} failed at this generation ({type(error).__name__}); see its engine's log"
        return SessionFailure(FailureCode.INTERNAL, message)

    def _check(self, now: float) -> None:
        """Once a second, look for lost frames and at the free memory."""
        if now < self._check_at:
            return
        self._check_at = now + CHECK_EVERY_S
        self._reap(now)
        if self._cache_bound.follow(memory().available, len(self.runner.blocks) * BLOCK * self._position_bytes):
            self.report_cache(lacks=False)
        self.input.trim(now)

    def _reap(self, now: float) -> None:
        """Fail the sessions that have no step for so long that a frame of theirs must be lost."""
        limit_s = self.input.idle_limit_s
        for session in self.sessions.idle_since(now - limit_s):
            message = f"this generation made no progress for {limit_s:g} s; try again"
            self.fail(session, SessionFailure(FailureCode.TIMEOUT, message))

    def _check_drained(self) -> None:
        while self._drained and not self.sessions.by_id:
            if (drained := self._drained.pop()).set_running_or_notify_cancel():
                drained.set_result(None)
