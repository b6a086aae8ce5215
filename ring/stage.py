"""One stage of a ring: frames in, micro-batches through the engine, frames out.

`Stage` is what every stage does. What depends on its place in the ring is in two roles: the first stage's input role is
the `RingCoordinator`, the others' a `Follower`; the last stage's output role is the `TokenSampler`, the others' a
`Forwarder`. `ring.roles` chooses them. Text is unknown here.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from concurrent.futures import Future
from dataclasses import dataclass

import msgspec

from bus.dataplane.access import owner_of, reply_endpoint
from bus.dataplane.frames import Flag, Frame, Payload
from bus.dataplane.transport import PeerUnreachable
from cluster.failures import FailureCode
from cluster.openings import Opening, SessionFailure
from common.limits import UNREADABLE
from common.rate_limit import RateLimitedLogger
from engines.engine import MAX_SLOTS, EngineError, FloatArray
from ring.frame_writer import FrameWriter, Outgoing
from ring.loaded_shard import LoadedShard
from ring.model_runner import ModelRunner
from ring.prefix_cache import BLOCK, CacheUpdate, PrefixLost
from ring.ring_view import RingView
from ring.scheduler import PROMPT_CHUNK
from ring.sessions import StageSession, StageSessions
from ring.step_queue import StepQueue
from ring.steps import Step

logger = logging.getLogger(__name__)
limited = RateLimitedLogger(logger)

REAP_EVERY_S = 1.0
IDLE_WAIT_MS = 1000
FRAMES_A_TURN = 1024  # a peer that sends without end must not keep the engine waiting
REST_WAIT_MS = 50  # for the rest of a micro-batch: its frames were sent together, so one that is late is lost

_decode_opening = msgspec.msgpack.Decoder(Opening).decode


@dataclass(frozen=True, slots=True)
class StageCounts:
    """What a stage did since it was loaded; sessions, waiting and stored positions are the current ones."""

    sessions: int = 0
    waiting: int = 0
    forwards: int = 0
    rows: int = 0
    reused_rows: int = 0
    stored_positions: int = 0
    drafted: int = 0
    accepted: int = 0
    busy_seconds: float = 0.0


class InputRole(ABC):
    """How a stage gets its sessions and their rows. The first stage's are its own, the others' come down the ring."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    @property
    @abstractmethod
    def waiting(self) -> int:
        """How many sessions wait to be admitted."""

    @property
    @abstractmethod
    def idle_limit_s(self) -> float:
        """After how many seconds without a step a session is taken for lost."""

    @abstractmethod
    def accepts(self, frame: Frame, sender: str) -> bool:
        """Whether a frame may come from this node; see `ring.frame_policy`."""

    @abstractmethod
    def may_reply_to(self, owner: str, sender: str) -> bool:
        """Whether an opening that comes from `sender` may name endpoints of the node `owner`."""

    @abstractmethod
    def open(self, session_id: int, opening: Opening, reply_to: str) -> None:
        """Handle an opening. Raises KeyError or ValueError if the session cannot be opened."""

    @abstractmethod
    def receive(self, session: StageSession, frame: Frame, payload: Payload) -> None:
        """Handle a frame of a session that is open here, neither OPEN nor CLOSE."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether there is something to compute now."""

    @abstractmethod
    def next_steps(self) -> list[Step]:
        """Return a micro-batch of decode steps; empty if none is due."""

    @abstractmethod
    def next_prompts(self) -> list[Step]:
        """Return a micro-batch of prompt chunks; empty if none is due."""

    @abstractmethod
    def failed(self, session: StageSession) -> None:
        """Handle that this stage failed a session, which is closed already."""

    @abstractmethod
    def admit(self) -> None:
        """Start the sessions that may run now. Called every turn."""

    @abstractmethod
    def started(self, session: StageSession, cached: int) -> None:
        """Handle that a session has its slot, with its first `cached` positions restored."""

    @abstractmethod
    def closing(self, session: StageSession, frame: Frame) -> None:
        """Handle the CLOSE of a session, which is still open."""

    @abstractmethod
    def closed(self, session_id: int) -> None:
        """Forget a session that is over, or that waited and is given up. It may be unknown."""

    @abstractmethod
    def drain(self) -> None:
        """Refuse new sessions from now on, and those that wait."""


class OutputRole(ABC):
    """Where a stage's outputs go: to the next stage, or from the last one as tokens to the gateway and the first."""

    drafted = 0
    accepted = 0

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    @abstractmethod
    def logits_wanted(self, step: Step) -> int:
        """Return of how many of a step's last rows the logits are wanted. Raises EngineError for an invalid step."""

    @abstractmethod
    def started(self, session: StageSession, cached: int) -> None:
        """Handle that a session has its slot, with its first `cached` positions restored."""

    @abstractmethod
    def store(self, session: StageSession, update: CacheUpdate) -> None:
        """Pass a cache update on."""

    @abstractmethod
    def deliver(self, computed: list[tuple[Step, FloatArray]]) -> None:
        """Send on what the engine made of a micro-batch."""

    def closed(self, session: StageSession) -> None:
        """Forget a session, and pass its CLOSE on."""
        self._stage.frames.send_close(session, self._stage.ring.next_endpoint)


class Stage:
    """The sessions of one shard. One thread creates it and calls `turn` over and over.

    Its parts are public for its roles.
    """

    def __init__(
        self, shard: LoadedShard, ring: RingView, input_role: type[InputRole], output_role: type[OutputRole]
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
        self.runner = ModelRunner(shard.engine, self.output.logits_wanted)
        self.input = input_role(self)
        self._epoch = shard.epoch
        self._drained: Future[None] | None = None
        self._reap_at = 0.0

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

    def drain(self, drained: Future[None]) -> None:
        """Take no new sessions; `drained` is done when the last one here is over."""
        self._drained = drained
        self.input.drain()
        self._check_drained()

    def turn(self) -> None:
        """Handle all frames that are here, then compute one micro-batch of decode steps, then one of prompt chunks.

        Running sessions come first, so a long prompt delays their tokens by one chunk at most. If there is nothing to
        do, wait for a frame, at most IDLE_WAIT_MS, less if the transport is woken.
        """
        self._receive_frames()
        self._reap(time.monotonic())
        self.input.admit()
        if batch := self.input.next_steps():
            self._compute(batch)
        if batch := self.input.next_prompts():
            self._compute(batch)

    def _receive_frames(self) -> None:
        """Handle the frames that are here, and wait for the rest of a micro-batch that has begun to come.

        Computing what is here already would split the micro-batch for good, at the cost of a pass per round.
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

    def _receive(self, frame: Frame, payload: Payload, sender: str) -> None:
        if frame.epoch != self._epoch:
            self.transport.dropped["another epoch"] += 1
        elif not self.input.accepts(frame, sender):
            self.transport.dropped["wrong sender"] += 1
        elif frame.flags & Flag.OPEN:
            self._receive_opening(frame, payload, sender)
        elif (session := self.sessions.by_id.get(frame.session)) is None:
            self._receive_unknown(frame)
        elif frame.flags & Flag.CLOSE:
            self.input.closing(session, frame)
            self.close(session)
        else:
            self.input.receive(session, frame, payload)

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
            self.queue.skip(frame)

    # -- for the roles

    def start(self, session_id: int, opening: Opening, reply_to: str) -> bool:
        """Start a session with the prefix blocks that its opening names; returns False if it failed at once.

        Raises KeyError if the session is here already, and ValueError if no slot is free.
        """
        self.runner.blocks.drop(opening.drop)  # in any case: the first stage counts them as dropped
        session = self.sessions.add(session_id, opening, time.monotonic())
        session.reply_to, session.owner = reply_to, owner_of(opening.reply_to)
        try:
            cached = self.runner.restore(session)
        except (PrefixLost, EngineError) as error:
            self.fail(session, SessionFailure(FailureCode.PREFIX_LOST, f"{error}; try again", 1))
            return False
        self.input.started(session, cached)
        self.output.started(session, cached)
        return True

    def send(self, session: StageSession, outgoing: Outgoing) -> None:
        """Send a session's frame, and end the session if it cannot be sent. Sends nothing for one that has ended."""
        if session.session not in self.sessions.by_id:
            return
        try:
            self.transport.send(*outgoing)
        except PeerUnreachable as error:
            message = f"stage {self.ring.index} cannot send: {error}"
            self.fail(session, SessionFailure(FailureCode.STAGE_FAILED, message))

    def fail(self, session: StageSession, failure: SessionFailure) -> None:
        """Report to the gateway why, and close the session here and on the other stages."""
        if session.session not in self.sessions.by_id:
            return
        limited.warning(failure.code, "session %x: %s", session.session, failure.message)
        self.close(session)
        self.input.failed(session)
        self.frames.send_failure(session.session, session.reply_to, failure)

    def close(self, session: StageSession) -> None:
        """Free the slot. The CLOSE goes on round the ring until it is at a stage that does not know the session."""
        self.sessions.remove(session.session)
        self.input.closed(session.session)
        self.queue.discard_parts(session)
        self.runner.release(session)
        self.output.closed(session)
        self._check_drained()

    # --

    def _compute(self, batch: list[Step]) -> None:
        computed = []
        for step, output in self.runner.run(batch):
            if isinstance(output, EngineError):
                self.fail(step.session, SessionFailure(FailureCode.ENGINE, str(output)))
            else:
                computed.append((step, output))
        self.output.deliver(computed)

    def _reap(self, now: float) -> None:
        """Fail the sessions that have no step for so long that a frame of theirs must be lost."""
        if now < self._reap_at:
            return
        self._reap_at = now + REAP_EVERY_S
        limit_s = self.input.idle_limit_s
        for session in self.sessions.idle_since(now - limit_s):
            message = f"this generation made no progress for {limit_s:g} s"
            self.fail(session, SessionFailure(FailureCode.TIMEOUT, message))

    def _check_drained(self) -> None:
        if self._drained and not self.sessions.by_id and not self._drained.done():
            self._drained.set_result(None)
