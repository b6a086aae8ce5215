"""What only the first stage of a ring does: it admits sessions, sends their prompts on, deals decode steps into
micro-batches, and decides what the prefix cache stores.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import numpy as np

from bus.dataplane.access import owner_of, reply_endpoint
from bus.dataplane.frames import GATEWAY_STAGE, Flag, Frame, Payload
from cluster.failures import FailureCode
from cluster.openings import Opening, SessionFailure
from common.limits import UNREADABLE
from engines.settings import MAX_SLOTS
from ring.frame_policy import accepted_by_first
from ring.frame_writer import NO_SESSION
from ring.prefix_cache import CacheReport
from ring.ring_memory import RingMemory
from ring.roles import InputRole
from ring.scheduler import Scheduler
from ring.sessions import StageSession
from ring.stage import Stage
from ring.step_queue import BadChunk
from ring.steps import Step

IDLE_S = 120.0
_decode_report = msgspec.msgpack.Decoder(CacheReport).decode
REPLACED = SessionFailure(FailureCode.REPLACED, "this instance is being replaced; try again", 1)


class RingCoordinator(InputRole):
    """The first stage's input: sessions from gateways, and the tokens that come round the ring."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._memory = RingMemory(stage.ring.positions, MAX_SLOTS, stores=stage.ring.saves)
        self._scheduler = Scheduler(stage.sessions, stage.queue, stage.ring.size)
        self._draining = False

    @property
    def waiting(self) -> int:
        """How many sessions wait to be admitted."""
        return self._memory.waiting

    def waits(self, session_id: int) -> bool:
        """Return whether a session waits to be admitted. May be called from any thread."""
        return self._memory.waiting_opening(session_id) is not None

    def accepts(self, frame: Frame, sender: str) -> bool:
        """Return whether a frame may come from this node: an opener's, the owner's or another stage's."""
        nodes = self._stage.ring.nodes
        if not frame.flags & (Flag.OPEN | Flag.CLOSE):  # every decode step
            return accepted_by_first(frame, sender, nodes, None, None)
        return accepted_by_first(
            frame, sender, nodes, self._stage.transport.role_of(sender), self._owner(frame.session)
        )

    def _owner(self, session_id: int) -> str | None:
        """Return the node that opened a session that runs or waits; None for an unknown one."""
        if running := self._stage.sessions.by_id.get(session_id):
            return running.owner
        opening = self._memory.waiting_opening(session_id)
        return owner_of(opening.reply_to) if opening else None

    def may_reply_to(self, owner: str, sender: str) -> bool:
        """Return whether the opener names its own endpoints. A process of this user may open for any node."""
        return not sender or owner == sender

    def open(self, session_id: int, opening: Opening, reply_to: str) -> None:
        """Queue a session, or refuse it with a reason."""
        if failure := REPLACED if self._draining else self._memory.enqueue(session_id, opening):
            self._stage.frames.send_refusal(session_id, opening, failure)
        else:
            self.admit()

    def receive(self, session: StageSession, frame: Frame, payload: Payload) -> None:
        """Handle a token that came round the ring, or the report of a chunk that every stage has computed.

        Raises BadChunk for a token that was not due.
        """
        if frame.flags & Flag.TOKEN:
            self._receive_token(session, frame, payload)
        else:
            session.computed = max(session.computed, min(frame.position, session.sent))

    def receive_store(self, frame: Frame, payload: Payload) -> None:
        """Handle another stage's report."""
        try:
            self._memory.reported(frame.stage, _decode_report(payload.tobytes()))
        except UNREADABLE:
            self._stage.transport.dropped["store"] += 1

    def report(self, report: CacheReport) -> None:
        """Handle this stage's own report."""
        self._memory.reported(self._stage.ring.index, report)

    def trim(self, now: float) -> None:
        """Drop on every stage what there is no memory for, and everything if the ring was idle for long."""
        if (update := self._memory.trim(now)) and not self._stage.store(NO_SESSION, update):
            self._memory.invalidate()

    def _receive_token(self, session: StageSession, frame: Frame, tokens: Payload) -> None:
        """Queue a token, with drafts of what may follow, as the next step of its session."""
        if tokens.dtype != np.int32 or not session.expects(frame.position, tokens.size):
            raise BadChunk("a token came that was not due; try again")
        if session.computed < session.opening.first_position <= frame.position:
            self._store(session, session.opening.prompt)  # a token follows it, so every stage has computed it
        self._scheduler.returned(session)
        session.put(frame.position, tokens.tolist())
        if not frame.flags & Flag.FINISHED:
            self._stage.queue.add_token(session, frame, tokens)

    @property
    def busy(self) -> bool:
        """Whether there is something to compute now."""
        return self._scheduler.busy

    def next_steps(self) -> list[Step]:
        """Return a micro-batch of decode steps, dealt from those that came back; empty if none is due."""
        return self._scheduler.next_steps()

    def next_prompts(self) -> list[Step]:
        """Return a micro-batch of prompt chunks; empty if none is due."""
        return self._scheduler.next_prompts()

    def admit(self) -> None:
        """Start the sessions that fit, and report to the waiting ones how many are ahead."""
        if not self._memory.waiting:
            return
        now = time.monotonic()
        while admitted := self._memory.admit(now):
            session_id, opening = admitted
            try:
                reply_to = reply_endpoint(opening.reply_to, self._stage.transport.own_id)
                started = self._stage.start(session_id, opening, reply_to)
            except ValueError:  # the owner went away while the session waited
                started = False
            if not started:
                self._memory.undo_admission(session_id, opening, now)
        for session_id, opening, ahead in self._memory.moved(now):
            if not self._stage.frames.send_queue_position(session_id, opening, ahead):
                self._memory.remove(session_id, now)  # or each report to it would delay the ring by a send timeout

    def started(self, session: StageSession, cached: int) -> None:
        """Begin to send the prompt on, from where the stored prefix ends."""
        self._stage.sessions.start_prefill(session, cached)

    def closing(self, session: StageSession, frame: Frame) -> None:
        """Store the text of a session that its gateway ends. A CLOSE of a stage means that the stage failed it.

        An invariant engine's decode steps may give other bits than the next turn's prompt, so the answer is not stored.
        """
        ended = frame.stage == GATEWAY_STAGE and not self._stage.runner.invariant
        if ended and session.computed >= session.opening.first_position:
            self._store(session, session.tokens[: session.computed])

    def closed(self, session_id: int) -> None:
        """Free the session's memory, or its place in the queue."""
        self._memory.remove(session_id, time.monotonic())
        self._scheduler.discard(session_id)

    def failed(self, session: StageSession) -> None:
        """Do nothing: the session is closed, and its CLOSE is on its way to the other stages."""

    def drain(self) -> None:
        """Refuse new sessions from now on, and those that wait."""
        self._draining = True
        for session_id, opening in self._memory.remove_waiting():
            self._stage.frames.send_refusal(session_id, opening, REPLACED)

    @property
    def idle_limit_s(self) -> float:
        """Short: a session decodes here without a pause, or has prompt left here and does not count as idle."""
        return IDLE_S

    def _store(self, session: StageSession, tokens: Sequence[int]) -> None:
        """Have every stage store a session's first positions; all of them have computed them."""
        if (update := self._memory.store(tokens)) and not self._stage.store(session.id, update):
            self._memory.invalidate()
