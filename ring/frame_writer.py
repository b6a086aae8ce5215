"""The frames that a stage sends, made from its values."""

from __future__ import annotations

import msgspec
import numpy as np

from bus.dataplane.access import reply_endpoint
from bus.dataplane.frames import Flag, Frame, Payload
from bus.dataplane.transport import PeerUnreachable, Transport
from cluster.openings import MAX_FAILURE, Opening, SessionFailure
from engines.activations import packed
from engines.engine import FloatArray
from models.architecture import Dtype
from ring.prefix_cache import CacheReport, CacheUpdate
from ring.ring_view import RingView
from ring.sessions import StageSession
from ring.steps import SampledTokens, Step

OutgoingArray = tuple[str, Frame, Payload]
Outgoing = OutgoingArray | tuple[str, Frame, bytes]
"""An endpoint, and what to send to it."""


NO_SESSION = 0
"""The session of a frame that is about the prefix cache only."""


class FrameWriter:
    """Frames with the instance's epoch and the stage's index.

    What a session depends on is returned, for `Stage.send`, which ends the session if it cannot be sent. The methods
    named `send_…` send at once, and a loss is only counted: the session is over, or has not begun.
    """

    def __init__(self, transport: Transport, epoch: int, ring: RingView, activations: Dtype) -> None:
        self._transport = transport
        self._epoch = epoch
        self._ring = ring
        self._activations = activations

    def _frame(self, session_id: int, flags: int, position: int = 0, compute_ns: int = 0, rest: int = 0) -> Frame:
        return Frame(flags, self._epoch, session_id, position, stage=self._ring.index, compute_ns=compute_ns, rest=rest)

    def opening(self, session: StageSession) -> Outgoing:
        """Return a session's opening for the next stage."""
        payload = msgspec.msgpack.encode(session.opening)
        return self._ring.next_endpoint, self._frame(session.id, Flag.OPEN), payload

    def hidden_states(self, step: Step, output: FloatArray, rest: int) -> Outgoing:
        """Return a step's hidden states for the next stage, in the model's own dtype; `rest` more steps follow."""
        flags = (Flag.SAMPLE if step.samples else 0) | (Flag.ROLLBACK if step.rollback else 0)
        frame = self._frame(step.session.id, flags, step.position, step.compute_ns, rest)
        return self._ring.next_endpoint, frame, packed(output, self._activations)

    def ring_token(self, sampled: SampledTokens, rest: int) -> OutgoingArray:
        """Return a session's newest token, and the drafts after it, for the first stage; `rest` more tokens follow."""
        flags = Flag.TOKEN | (Flag.ROLLBACK if sampled.rollback else 0) | (Flag.FINISHED if sampled.finished else 0)
        position = sampled.position + len(sampled.tokens) - 1
        frame = self._frame(sampled.session.id, flags, position, 0, rest)
        return self._ring.first_endpoint, frame, np.array((sampled.tokens[-1], *sampled.drafts), np.int32)

    def gateway_tokens(self, sampled: SampledTokens) -> Outgoing:
        """Return all new tokens of a session, for its gateway."""
        flags = Flag.TOKEN | Flag.FINISHED if sampled.finished else Flag.TOKEN
        frame = self._frame(sampled.session.id, flags, sampled.position, sampled.compute_ns)
        return sampled.session.reply_to, frame, np.array(sampled.tokens, np.int32)

    def computed(self, step: Step) -> OutgoingArray:
        """Return the report that every stage has computed a prompt up to this chunk's end, for the first stage."""
        frame = self._frame(step.session.id, Flag.COMPUTED, step.end)
        return self._ring.first_endpoint, frame, np.empty(0, np.int32)

    def send_admission(self, session: StageSession, cached: int) -> None:
        """Report to the gateway that the session runs, and that `cached` tokens of its prompt need not be computed."""
        self._send_queue_position(session.id, session.reply_to, 0, cached)

    def send_queue_position(self, session_id: int, opening: Opening, ahead: int) -> bool:
        """Report to the gateway that `ahead` sessions wait before this one. Returns False if it cannot be reached."""
        reply_to = self._reply_endpoint(opening)
        return bool(reply_to) and self._send_queue_position(session_id, reply_to, ahead + 1, 0)

    def send_refusal(self, session_id: int, opening: Opening, failure: SessionFailure) -> None:
        """Report to the gateway that a session was not admitted."""
        if reply_to := self._reply_endpoint(opening):
            self.send_failure(session_id, reply_to, failure)

    def send_failure(self, session_id: int, reply_to: str, failure: SessionFailure) -> None:
        """Report to the gateway why a session is over."""
        failure = msgspec.structs.replace(failure, message=failure.message[:MAX_FAILURE])
        self._send(
            reply_to, self._frame(session_id, Flag.FAILED), msgspec.msgpack.encode(failure), "gateway unreachable"
        )

    def send_update(self, session_id: int, update: CacheUpdate) -> bool:
        """Send a cache update to the next stage. Returns False if it cannot be reached."""
        payload = msgspec.msgpack.encode(update)
        return self._send(self._ring.next_endpoint, self._frame(session_id, Flag.STORE), payload, "stage unreachable")

    def send_report(self, report: CacheReport) -> None:
        """Send the first stage a report on this one's prefix cache."""
        payload = msgspec.msgpack.encode(report)
        self._send(self._ring.first_endpoint, self._frame(NO_SESSION, Flag.STORE), payload, "stage unreachable")

    def send_close(self, session: StageSession, endpoint: str) -> None:
        """Send a session's CLOSE to a stage."""
        self._send(endpoint, self._frame(session.id, Flag.CLOSE), b"", "stage unreachable")

    def _reply_endpoint(self, opening: Opening) -> str:
        """Return the owner's endpoint; "" if its file or link is gone."""
        try:
            return reply_endpoint(opening.reply_to, self._transport.own_id)
        except ValueError:
            self._transport.dropped["gateway unreachable"] += 1
            return ""

    def _send_queue_position(self, session_id: int, reply_to: str, place: int, cached: int) -> bool:
        payload = np.array([place, cached], np.int32)
        return self._send(reply_to, self._frame(session_id, Flag.QUEUE_POSITION), payload, "gateway unreachable")

    def _send(self, endpoint: str, frame: Frame, payload: Payload | bytes, loss: str) -> bool:
        try:
            self._transport.send(endpoint, frame, payload)
        except PeerUnreachable:
            self._transport.dropped[loss] += 1
            return False
        return True
