"""The gateway's sessions on the data plane: opens them on first stages, passes on what comes, closes each once.

Knows token ids and instances; text, HTTP and the bus are unknown here. Lives on one asyncio loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import zmq

from bus.dataplane.access import LOCAL, Access, best_endpoint
from bus.dataplane.async_transport import AsyncTransport
from bus.dataplane.frames import GATEWAY_STAGE, HEADER_BYTES, Flag, Frame, FrameError, Payload
from bus.net.sockets import DATA_BYTES
from cluster.failures import FailureCode
from cluster.openings import Opening, SessionFailure
from cluster.placement import Instance
from common.limits import UNREADABLE
from gateway.core.session import QueuePosition, Session, SessionFailed

OPEN_TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode
_decode_failure = msgspec.msgpack.Decoder(SessionFailure).decode


class DataPlane:
    """All sessions of a gateway, and the sockets that they share."""

    def __init__(self, run_dir: Path, access: Access = LOCAL) -> None:
        """Listen for tokens on an ipc endpoint of the node and, in a cluster, on a free tcp port. Raises OSError."""
        self._transport = AsyncTransport(run_dir, "gateway", access)
        self.endpoints = self._transport.endpoints
        self.dropped = self._transport.dropped
        self._sessions: dict[int, Session] = {}

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The sessions with a block that runs."""
        return tuple(self._sessions.values())

    @asynccontextmanager
    async def session(self, instance: Instance, opening: Opening) -> AsyncIterator[Session]:
        """Open a session for as long as the block runs. Its CLOSE goes out exactly once, however the block ends.

        Raises SessionFailed if the first stage cannot be reached.
        """
        session = Session(instance, opening)
        first = instance.stages[0]
        try:
            endpoint = best_endpoint(first.endpoints, first.node_id)
        except ValueError as error:
            raise SessionFailed(FailureCode.NODE_LOST, f"{error}; try again") from None
        self._sessions[session.id] = session
        try:
            await self._open(endpoint, session)
            session.opened()
            try:
                yield session
            finally:
                self._close(endpoint, session)
        finally:
            del self._sessions[session.id]

    async def run(self) -> None:
        """Pass every frame on to its session, until cancelled. Frames that are not accepted are counted and dropped."""
        while True:
            received = await self._transport.receive()
            try:
                self._receive(*received)
            except FrameError as error:
                self.dropped[error.reason] += 1

    def fail_where(self, lost: Callable[[Instance], bool], message: str) -> None:
        """Fail the sessions that have lost their instance."""
        for session in self._sessions.values():
            if lost(session.instance):
                session.fail(FailureCode.NODE_LOST, message)

    def close(self) -> None:
        """Close every socket; frames on their way get a moment."""
        self._transport.close()

    def _receive(self, frame: Frame, payload: Payload, sender: str) -> None:
        session = self._sessions.get(frame.session)
        if session is None:
            raise FrameError("no such session")
        if frame.epoch != session.instance.epoch:
            raise FrameError("another epoch")
        if not accepted_by_gateway(frame.flags, sender, session.instance.node_ids):
            raise FrameError("wrong sender")
        if frame.flags & Flag.FAILED:
            failure = _failure(payload)
            session.fail(failure.code, failure.message, failure.retry_after_s)
        elif frame.flags & Flag.QUEUE_POSITION:
            if not session.receive_queue_position(_queue_position(payload)):
                raise FrameError("late queue position")
        elif frame.flags & Flag.TOKEN:
            session.receive_tokens(frame.position, _numbers(payload), finished=bool(frame.flags & Flag.FINISHED))
        else:
            raise FrameError("flags")

    async def _open(self, endpoint: str, session: Session) -> None:
        payload = _encode(session.opening)
        if len(payload) > DATA_BYTES - HEADER_BYTES:  # the stage's socket would drop it without a word
            sentence = f"the opening has {len(payload)} bytes, and a frame holds {DATA_BYTES - HEADER_BYTES}"
            raise SessionFailed(FailureCode.TOO_LARGE, f"{sentence}; shorten the messages")
        try:
            sending = self._transport.send(endpoint, _frame(session, Flag.OPEN), payload)
        except ValueError as error:
            raise SessionFailed(FailureCode.NODE_LOST, f"{error}; try again") from None
        if not await _done_first(sending, session.failed, OPEN_TIMEOUT_S):
            self._transport.disconnect(endpoint)
            raise session.failure or SessionFailed(
                FailureCode.NODE_LOST, f"the first stage at {endpoint} cannot be reached; try again"
            )

    def _close(self, endpoint: str, session: Session) -> None:
        """Send CLOSE without waiting, so that a cancelled task cannot lose it; a stage that accepts none has failed."""
        try:
            self._transport.send(endpoint, _frame(session, Flag.CLOSE), b"", wait=False).add_done_callback(_log_failure)
        except ValueError as error:  # its node is not linked any more
            logger.info("a close frame was not sent: %s", error)


async def _done_first(sending: asyncio.Future[object], event: asyncio.Event, timeout_s: float) -> bool:
    """Wait until a frame is sent, an event is set or the time is over. Returns False if the frame was not sent.

    Raises what sending it raised.
    """
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((sending, waiting), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
        return sending.done()
    finally:
        waiting.cancel()
        sending.cancel()


def accepted_by_gateway(flags: int, sender: str, nodes: Sequence[str]) -> bool:
    """Return whether a gateway accepts a frame from a node, if a session's stages are on `nodes`, in their order.

    Tokens come from the last stage, queue positions from the first and the admission from the last, a failure from any.
    A process of this user may send all of them.
    """
    if not sender:
        return True
    if flags & Flag.FAILED:
        return sender in nodes
    return sender == nodes[-1] or (sender == nodes[0] and bool(flags & Flag.QUEUE_POSITION))


def _frame(session: Session, flags: int) -> Frame:
    return Frame(flags, session.instance.epoch, session.id, stage=GATEWAY_STAGE)


def _numbers(payload: Payload) -> list[int]:
    if payload.dtype != np.int32 or payload.ndim != 1 or not len(payload):
        raise FrameError("payload")
    numbers: list[int] = payload.tolist()
    return numbers


def _queue_position(payload: Payload) -> QueuePosition:
    numbers = _numbers(payload)
    if len(numbers) != 2 or min(numbers) < 0:
        raise FrameError("payload")
    return QueuePosition(*numbers)


def _failure(payload: Payload) -> SessionFailure:
    try:
        return _decode_failure(payload.tobytes())
    except UNREADABLE:
        raise FrameError("payload") from None


def _log_failure(sent: asyncio.Future[object]) -> None:
    """Log that a close frame could not be sent: a full or broken pipe means that the stage is gone."""
    if not sent.cancelled() and isinstance(error := sent.exception(), zmq.ZMQError):
        logger.info("a close frame was not sent: %s", error)
