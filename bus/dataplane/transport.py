"""Data-plane sockets of one thread: a ROUTER that hears, a DEALER for each neighbour. Blocking, no asyncio.

Moves frames, says which node sent each, and counts what is lost or not to be believed; what a frame means is the
stage's business. A sender keeps a dead neighbour's frames from queueing: it fails within a deadline instead.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zmq

from bus.dataplane.access import ClusterAccess, check_linked, dial, let_in, listen, role_of
from bus.dataplane.frames import FRAGMENT_BYTES, Flag, Frame, FrameError, pack_part, unpack
from bus.dataplane.inbound import SEQUENCES, InboundConnections
from bus.net.sockets import DATA_BYTES, DATA_MARK, open_socket
from cluster.roles import Role

Array = npt.NDArray[np.generic]
Received = tuple[Frame, Array, str]
"""A frame, its payload, and the node that sent it: "" for a process of this user."""

SEND_WITHIN_MS = 2000
LINGER_MS = 200
GONE_FOR_S = 5.0  # so long nobody waits again for a neighbour that took nothing
COPY_BELOW = 64 << 10  # bytes; handing a smaller frame over without a copy costs more than the copy
WAKE, WAKER = "inproc://wake", b"waker"  # nobody else can take this routing id: it is connected first
NOBODY = b""
READABLE = int(zmq.POLLIN)
MAX_NEIGHBOURS = 64  # gateways come and go; the one used longest ago is closed


class NeighbourGone(Exception):
    """A frame could not be handed to a neighbour in time."""


class _Neighbour:
    """A connection that only sends."""

    __slots__ = ("dealer", "node", "sent")

    def __init__(self, dealer: zmq.Socket[bytes], node: str) -> None:
        self.dealer = dealer
        self.node = node
        self.sent = 0


class Transport:
    """One thread's data plane. Make it, use it and close it on that thread."""

    def __init__(self, run_dir: Path, name: str, reach: ClusterAccess | None = None) -> None:
        """Listen on an ipc end point of the node and, in a cluster, on a free tcp port. Raises OSError."""
        self.dropped: Counter[str] = Counter()
        self._reach = reach
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._inbox = self._open(zmq.ROUTER)
        self._zap = let_in(self._context, reach)
        self._inbox.bind(WAKE)
        self._waker = self._open(zmq.DEALER)
        self._waker.setsockopt(zmq.ROUTING_ID, WAKER)
        self._waker.connect(WAKE)
        self.endpoints = listen(self._inbox, run_dir, name, reach)
        self._senders = InboundConnections(reach)
        self._neighbours: OrderedDict[str, _Neighbour] = OrderedDict()
        self._gone: dict[str, float] = {}  # end point -> when it may be tried again
        self._waking = threading.Lock()  # a socket must not be used while it is closed
        self._patience_ms = 0

    @property
    def own_id(self) -> str:
        """This node's id; "" where it stands alone."""
        return self._reach.pair.node_id if self._reach else ""

    def role_of(self, sender: str) -> Role | None:
        """What the sender of a frame may do; None for a node that is not linked."""
        return role_of(self._reach, sender)

    def wake(self) -> None:
        """End a waiting `receive` early. The one method for other threads, also after `close`."""
        with self._waking, suppress(zmq.Again):  # enough wake-ups wait there already
            if not self._waker.closed:
                self._waker.send(b"", zmq.DONTWAIT)

    def receive(self, milliseconds: int = 0) -> Received | None:
        """The next frame and its sender, waited for at most so long. None when none came, or when we were woken.

        What is not ours is counted and dropped. One blocking call, because each one costs a token its time.
        """
        while True:
            source, message = self._take(milliseconds)
            if source in (NOBODY, WAKER):
                return None
            try:
                sender = self._senders.node(source)
                frame, payload = unpack(message)
                follows = self._senders.follows(source, frame.sequence)
            except FrameError as error:
                self.dropped[error.reason] += 1
                continue
            if not follows:
                self.dropped["lost before this frame"] += 1
            return frame, payload, sender

    def _take(self, milliseconds: int) -> tuple[bytes, bytes]:
        """Who sent the next message, and it; NOBODY in time. What has several parts is none of ours: an empty one."""
        inbox = self._inbox
        if milliseconds and milliseconds != self._patience_ms:
            inbox.setsockopt(zmq.RCVTIMEO, milliseconds)
            self._patience_ms = milliseconds
        elif not milliseconds and not int(inbox.getsockopt(zmq.EVENTS)) & READABLE:
            return NOBODY, b""  # the usual answer, at a tenth of an exception's price
        try:
            source = inbox.recv(0 if milliseconds else zmq.DONTWAIT)
        except zmq.Again:
            return NOBODY, b""
        message = inbox.recv() if source in self._senders else self._meet(source)
        while inbox.getsockopt(zmq.RCVMORE):
            inbox.recv()
            message = b""
        return source, message

    def _meet(self, source: bytes) -> bytes:
        """The first message of a connection."""
        part = self._inbox.recv(copy=False)
        self._senders.meet(source, part)
        return part.bytes

    def send(self, endpoint: str, frame: Frame, payload: Array | bytes) -> None:
        """Hand one frame to a neighbour, rows cut into fragments of at most 256 KiB. The array is not written again.

        Raises NeighbourGone after two seconds, and at once for five seconds more or where its node is not linked.
        """
        neighbour = self._neighbour(endpoint)
        array = np.frombuffer(payload, np.uint8) if isinstance(payload, bytes) else payload
        if array.ndim == 1 or array.nbytes <= FRAGMENT_BYTES:  # every decode step: written out, since it runs cold
            self._push(neighbour, endpoint, frame, frame.flags, frame.position, array)
            return
        step = FRAGMENT_BYTES // (array.nbytes // len(array))
        for at in range(0, len(array), step):
            more = Flag.MORE if at + step < len(array) else 0
            self._push(neighbour, endpoint, frame, frame.flags | more, frame.position + at, array[at : at + step])

    def introduce(self, endpoint: str) -> None:
        """Connect ahead of the first frame, also to one that was gone.

        Raises ValueError for what is no end point, and for that of a node that is not linked.
        """
        self._gone.pop(endpoint, None)
        if endpoint in self._neighbours:
            check_linked(endpoint, self._reach)
        else:
            self._connect(endpoint)

    def close(self) -> None:
        """Close every socket; frames on their way out, such as a close, have a moment."""
        with self._waking:
            self._waker.close()
        if self._zap:
            self._zap.close()
        self._context.destroy(linger=LINGER_MS)

    def _push(self, neighbour: _Neighbour, endpoint: str, frame: Frame, flags: int, position: int, part: Array) -> None:
        neighbour.sent = (neighbour.sent + 1) % SEQUENCES
        message = pack_part(frame, flags, position, part, neighbour.sent)
        try:
            neighbour.dealer.send(message, 0, copy=len(message) < COPY_BELOW)
        except zmq.Again:  # also where our key was refused: such a connection never comes back by itself
            self._neighbours.pop(endpoint).dealer.close()
            self._gone[endpoint] = time.monotonic() + GONE_FOR_S
            raise NeighbourGone(f"{endpoint} took nothing for {SEND_WITHIN_MS / 1000:g} s") from None

    def _neighbour(self, endpoint: str) -> _Neighbour:
        """The connection to an end point. Raises NeighbourGone, also where there is no link to its node."""
        neighbour = self._neighbours.get(endpoint)
        if neighbour is None:
            self._check_gone(endpoint)
            try:
                return self._connect(endpoint)
            except ValueError as error:
                raise NeighbourGone(str(error)) from None
        if neighbour.node and self.role_of(neighbour.node) is None:  # revoked, or its hub is gone
            self._neighbours.pop(endpoint).dealer.close()
            raise NeighbourGone(f"node {neighbour.node} is not linked any more")
        self._neighbours.move_to_end(endpoint)
        return neighbour

    def _connect(self, endpoint: str) -> _Neighbour:
        dealer = self._open(zmq.DEALER)
        try:
            neighbour = self._neighbours[endpoint] = _Neighbour(dealer, dial(dealer, endpoint, self._reach))
        except ValueError:
            dealer.close()
            raise
        while len(self._neighbours) > MAX_NEIGHBOURS:
            self._neighbours.popitem(last=False)[1].dealer.close()
        return neighbour

    def _check_gone(self, endpoint: str) -> None:
        now = time.monotonic()
        self._gone = {gone: until for gone, until in self._gone.items() if until > now}
        if endpoint in self._gone:
            raise NeighbourGone(f"{endpoint} took nothing a moment ago")

    def _open(self, kind: int) -> zmq.Socket[bytes]:
        socket = open_socket(self._context, kind, high_water_mark=DATA_MARK, largest_frame=DATA_BYTES)
        socket.setsockopt(zmq.SNDTIMEO, SEND_WITHIN_MS)
        return socket
