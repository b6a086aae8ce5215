"""The gateway's end of the data plane: opens sessions on first stages, gives each what it hears, closes it once.

Knows token ids and instances; text, HTTP and the bus are others'. Lives on one asyncio loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import zmq
import zmq.asyncio

from bus.dataplane.access import ClusterAccess, NotLinked, best_endpoint, check_linked, dial, let_in, listen
from bus.dataplane.frames import GATEWAY_STAGE, Flag, Frame, FrameError, dtype_code, unpack
from bus.dataplane.inbound import SEQUENCES, InboundConnections
from bus.net.sockets import open_async_socket
from cluster.failures import FailureCode
from cluster.openings import Failure, Opening
from cluster.placement import Instance
from common.limits import UNREADABLE
from gateway.core.session import QueuePosition, Session, SessionFailed

OPEN_WITHIN_S = 5.0
MAX_STAGES = 64  # connections to first stages; the one used longest ago is closed

logger = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode
_decode_failure = msgspec.msgpack.Decoder(Failure).decode


class DataPlane:
    """All sessions of a gateway, and the sockets that they share."""

    def __init__(self, run_dir: Path, reach: ClusterAccess | None = None) -> None:
        """Listen for tokens on an ipc end point of the node and, in a cluster, on a free tcp port. Raises OSError."""
        self.dropped: Counter[str] = Counter()
        self._context = zmq.asyncio.Context()
        self._reach = reach
        self._zap = let_in(zmq.Context(self._context), reach)
        self._inbox = open_async_socket(self._context, zmq.ROUTER)
        self.endpoints = listen(self._inbox, run_dir, "gateway", reach)
        self._senders = InboundConnections(reach)
        self._sessions: dict[int, Session] = {}
        self._stages: OrderedDict[str, zmq.asyncio.Socket] = OrderedDict()
        self._sent: Counter[str] = Counter()

    @asynccontextmanager
    async def session(self, instance: Instance, opening: Opening) -> AsyncIterator[Session]:
        """A session that is open while the block runs; its close frame goes out exactly once, however it ends.

        Raises SessionFailed where the first stage cannot be reached.
        """
        session = Session(instance, opening)
        endpoint = self._first_stage(instance)
        self._sessions[session.id] = session
        try:
            await self._open(endpoint, session)
            try:
                yield session
            finally:
                self._close(endpoint, session)
        finally:
            del self._sessions[session.id]

    async def hear(self) -> None:
        """Give every frame that comes to its session, for ever. What is not ours is counted and dropped."""
        while True:
            source, *parts = await self._inbox.recv_multipart(copy=False)
            try:
                self._serve(*self._read(source.bytes, parts))
            except FrameError as error:
                self.dropped[error.reason] += 1

    def fail_where(self, lost: Callable[[Instance], bool], message: str) -> None:
        """End the sessions whose instance is lost."""
        for session in self._sessions.values():
            if lost(session.instance):
                session.fail(FailureCode.NODE_LOST, message)

    def close(self) -> None:
        """Close every socket; frames on their way out get a moment."""
        if self._zap:
            self._zap.close()
        self._context.destroy(linger=200)

    def _read(self, source: bytes, parts: list[zmq.Frame]) -> tuple[Frame, npt.NDArray[np.generic], str]:
        """A message as a frame, its payload and the node that sent it."""
        if source not in self._senders:
            self._senders.meet(source, parts[0])
        sender = self._senders.node(source)
        if len(parts) != 1:
            raise FrameError("parts")
        frame, payload = unpack(parts[0].bytes)
        self._senders.follows(source, frame.sequence)  # what is lost shows in the tokens' positions
        return frame, payload, sender

    def _serve(self, frame: Frame, payload: npt.NDArray[np.generic], sender: str) -> None:
        session = self._sessions.get(frame.session)
        if session is None:
            raise FrameError("no such session")
        if frame.epoch != session.instance.epoch:
            raise FrameError("another epoch")
        if not believes(frame.flags, sender, session.instance.node_ids):
            raise FrameError("not from there")
        if frame.flags & Flag.FAILED:
            failure = _failure(payload)
            session.fail(failure.code, failure.message, failure.retry_after_s)
        elif frame.flags & Flag.PLACE:
            session.hear_place(_place(payload))
        elif frame.flags & Flag.TOKEN:
            session.hear_tokens(frame, _numbers(payload))
        else:
            raise FrameError("flags")

    def _first_stage(self, instance: Instance) -> str:
        first = instance.stages[0]
        try:
            return best_endpoint(first.endpoints, first.node_id)
        except ValueError as error:
            raise SessionFailed(FailureCode.NODE_LOST, f"{error}; try again") from None

    async def _open(self, endpoint: str, session: Session) -> None:
        payload = _encode(session.opening)
        try:
            async with asyncio.timeout(OPEN_WITHIN_S):
                await self._send(endpoint, _frame(session, Flag.OPEN), payload)
        except ValueError as error:
            raise SessionFailed(FailureCode.NODE_LOST, f"{error}; try again") from None
        except TimeoutError:
            self._forget(endpoint)
            raise SessionFailed(
                FailureCode.NODE_LOST, f"the first stage at {endpoint} cannot be reached; try again"
            ) from None

    def _close(self, endpoint: str, session: Session) -> None:
        """Sent without waiting, so that a cancelled task cannot lose it; a stage that takes nothing is dead."""
        try:
            self._send(endpoint, _frame(session, Flag.CLOSE), b"", zmq.DONTWAIT).add_done_callback(_seen)
        except ValueError as error:  # its node is not linked any more
            logger.info("a close frame was not sent: %s", error)

    def _send(self, endpoint: str, frame: Frame, payload: bytes, flags: int = 0) -> asyncio.Future[object]:
        stage = self._stage(endpoint)
        self._sent[endpoint] = (self._sent[endpoint] + 1) % SEQUENCES
        header = frame._replace(
            rows=len(payload),
            dtype=dtype_code(np.empty(0, np.uint8)),
            sequence=self._sent[endpoint],
            sent_ns=time.monotonic_ns(),
        )
        return asyncio.ensure_future(stage.send(header.pack(payload), flags))

    def _stage(self, endpoint: str) -> zmq.asyncio.Socket:
        """The connection to a first stage. Raises ValueError where its node is not linked, or not any more."""
        try:
            check_linked(endpoint, self._reach)
        except NotLinked:
            self._forget(endpoint)
            raise
        stage = self._stages.get(endpoint)
        if stage is None:
            stage = open_async_socket(self._context, zmq.DEALER)
            try:
                dial(stage, endpoint, self._reach)
            except ValueError:
                stage.close()
                raise
            self._stages[endpoint] = stage
            self._sent[endpoint] = 0
            if len(self._stages) > MAX_STAGES:
                self._forget(next(iter(self._stages)))
        self._stages.move_to_end(endpoint)
        return stage

    def _forget(self, endpoint: str) -> None:
        if stage := self._stages.pop(endpoint, None):
            stage.close(linger=200)


def believes(flags: int, sender: str, nodes: Sequence[str]) -> bool:
    """Whether a gateway takes a frame from a node, where a session's stages are on `nodes`, in their order.

    Tokens come from the last stage, places from the first and the admission from the last, a failure from any. A
    process of this user is believed.
    """
    if not sender:
        return True
    if flags & Flag.FAILED:
        return sender in nodes
    return sender == nodes[-1] or (sender == nodes[0] and bool(flags & Flag.PLACE))


def _frame(session: Session, flags: int) -> Frame:
    return Frame(flags, session.instance.epoch, session.id, stage=GATEWAY_STAGE)


def _numbers(payload: npt.NDArray[np.generic]) -> list[int]:
    if payload.dtype != np.int32 or payload.ndim != 1 or not len(payload):
        raise FrameError("payload")
    numbers: list[int] = payload.tolist()
    return numbers


def _place(payload: npt.NDArray[np.generic]) -> QueuePosition:
    numbers = _numbers(payload)
    if len(numbers) != 2 or min(numbers) < 0:
        raise FrameError("payload")
    return QueuePosition(*numbers)


def _failure(payload: npt.NDArray[np.generic]) -> Failure:
    try:
        return _decode_failure(payload.tobytes())
    except UNREADABLE:
        raise FrameError("payload") from None


def _seen(sent: asyncio.Future[object]) -> None:
    """Take note of a failure to send a close frame: a full or broken pipe means that the stage is gone."""
    if not sent.cancelled() and isinstance(error := sent.exception(), zmq.ZMQError):
        logger.info("a close frame found no taker: %s", error)
