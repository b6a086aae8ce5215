"""The data plane of a thread: a ROUTER that receives and a DEALER for each endpoint that it sends to. Blocking.

Moves frames, reports which node sent each, and counts what is lost or refused. What a frame means is unknown here.
Frames never queue up for a peer that does not read: sending fails within a deadline instead.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import zmq

from bus.dataplane.access import LOCAL, Access
from bus.dataplane.connections import Connection, Connections
from bus.dataplane.frames import FRAGMENT_BYTES, Flag, Frame, FrameError, Payload, pack_part, unpack
from bus.dataplane.inbound_connections import InboundConnections
from bus.net.sockets import DATA_BYTES, DATA_MARK, open_socket

Dealer = zmq.Socket[bytes]
Received = tuple[Frame, Payload, str]
"""A frame, its payload, and the node that sent it: "" for a process of this user."""

SEND_TIMEOUT_MS = 2000
LINGER_MS = 200
RETRY_AFTER_S = 5.0  # after a failed send, sending to the endpoint fails at once for so long
COPY_BELOW = 64 << 10  # bytes; handing a smaller frame over without a copy costs more than the copy
WAKE, WAKER = "inproc://wake", b"waker"  # no other connection can have this routing id: the waker connects first
NO_SOURCE = b""
READABLE = int(zmq.POLLIN)


class PeerUnreachable(Exception):
    """A frame could not be sent to an endpoint in time; the message is one sentence."""


class Transport:
    """One thread's data plane. Create it, use it and close it on that thread."""

    def __init__(self, run_dir: Path, name: str, access: Access = LOCAL) -> None:
        """Listen on an ipc endpoint of the node and, in a cluster, on a free tcp port. Raises OSError."""
        self.dropped: Counter[str] = Counter()
        self.own_id = access.own_id
        self.role_of = access.role_of
        self._access = access
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._inbox = self._open(zmq.ROUTER)
        self._zap = access.start_zap(self._context)
        self._inbox.bind(WAKE)
        self._waker = self._open(zmq.DEALER)
        self._waker.setsockopt(zmq.ROUTING_ID, WAKER)
        self._waker.connect(WAKE)
        self.endpoints = access.bind(self._inbox, run_dir, name)
        self._inbound = InboundConnections(access)
        self._connections: Connections[Dealer] = Connections(self._dial, zmq.Socket.close, access.role_of)
        self._retry_at: dict[str, float] = {}  # endpoints that could not be reached
        self._waking = threading.Lock()  # a socket must not be used while it is being closed
        self._timeout_ms = 0

    def wake(self) -> None:
        """End a waiting `receive` early. The only method for other threads; may be called after `close`."""
        with self._waking, suppress(zmq.Again):  # enough wake-ups are queued already
            if not self._waker.closed:
                self._waker.send(b"", zmq.DONTWAIT)

    def receive(self, timeout_ms: int = 0) -> Received | None:
        """Return the next frame, its payload and its sender; None if none comes in time or `wake` was called.

        Invalid frames and those of nodes that are not linked are counted and dropped.
        """
        while True:
            source, message = self._take(timeout_ms)
            if source in (NO_SOURCE, WAKER):
                return None
            try:
                sender = self._inbound.sender(source)
                frame, payload = unpack(message)
                is_next = self._inbound.is_next(source, frame.sequence)
            except FrameError as error:
                self.dropped[error.reason] += 1
                continue
            if not is_next:
                self.dropped["lost before this frame"] += 1
            return frame, payload, sender

    def _take(self, timeout_ms: int) -> tuple[bytes, bytes]:
        """Return the next message and its source; NO_SOURCE if none comes in time.

        A message of several parts is not a frame, and is returned as an empty one. Waiting is one blocking call
        (RCVTIMEO instead of a poll before the receive), because each call costs every token its time.
        """
        inbox = self._inbox
        if timeout_ms and timeout_ms != self._timeout_ms:
            inbox.setsockopt(zmq.RCVTIMEO, timeout_ms)
            self._timeout_ms = timeout_ms
        elif not timeout_ms and not int(inbox.getsockopt(zmq.EVENTS)) & READABLE:
            return NO_SOURCE, b""  # the usual case, at a tenth of the cost of an exception
        try:
            source = inbox.recv(0 if timeout_ms else zmq.DONTWAIT)
        except zmq.Again:
            return NO_SOURCE, b""
        if source in self._inbound:
            message = inbox.recv()
        else:  # only a message that is not copied gives its sender
            part = inbox.recv(copy=False)
            self._inbound.add(source, part)
            message = part.bytes
        while inbox.getsockopt(zmq.RCVMORE):
            inbox.recv()
            message = b""
        return source, message

    def send(self, endpoint: str, frame: Frame, payload: Payload | bytes) -> None:
        """Send one frame, rows cut into fragments of at most 256 KiB. The array must not change afterwards.

        Raises PeerUnreachable after SEND_TIMEOUT_MS, and at once if the node is not linked or a send to the endpoint
        failed within the last RETRY_AFTER_S.
        """
        try:
            connection = self._connections.get(endpoint)
        except ValueError as error:
            raise PeerUnreachable(str(error)) from None
        array = np.frombuffer(payload, np.uint8) if isinstance(payload, bytes) else payload
        if array.ndim == 1 or array.nbytes <= FRAGMENT_BYTES:  # every decode step takes this way
            message = pack_part(frame, frame.flags, frame.position, array, connection.next_sequence())
            self._push(connection, endpoint, message)
            return
        rows = FRAGMENT_BYTES // (array.nbytes // len(array))
        for at in range(0, len(array), rows):
            flags = frame.flags | (Flag.MORE if at + rows < len(array) else 0)
            message = pack_part(frame, flags, frame.position + at, array[at : at + rows], connection.next_sequence())
            self._push(connection, endpoint, message)

    def connect(self, endpoint: str) -> None:
        """Connect ahead of the first frame, also to an endpoint that could not be reached before.

        Raises ValueError for a malformed endpoint, and NotLinked, which is one, if its node is not linked.
        """
        self._retry_at.pop(endpoint, None)
        self._connections.get(endpoint)

    def close(self) -> None:
        """Close every socket; frames on their way, such as a CLOSE, get a moment."""
        with self._waking:
            self._waker.close()
        if self._zap:
            self._zap.close()
        self._context.destroy(linger=LINGER_MS)

    def _push(self, connection: Connection[Dealer], endpoint: str, message: bytes) -> None:
        try:
            connection.socket.send(message, 0, copy=len(message) < COPY_BELOW)
        except zmq.Again:  # also if our key was refused: libzmq never retries such a connection
            self._connections.discard(endpoint)
            self._retry_at[endpoint] = time.monotonic() + RETRY_AFTER_S
            raise PeerUnreachable(f"{endpoint} accepted no frame for {SEND_TIMEOUT_MS / 1000:g} s") from None

    def _dial(self, endpoint: str) -> tuple[Dealer, str]:
        now = time.monotonic()
        self._retry_at = {lost: until for lost, until in self._retry_at.items() if until > now}
        if endpoint in self._retry_at:
            raise PeerUnreachable(f"{endpoint} accepted no frame a moment ago")
        dealer = self._open(zmq.DEALER)
        try:
            return dealer, self._access.dial(dealer, endpoint)
        except ValueError:
            dealer.close()
            raise

    def _open(self, kind: int) -> Dealer:
        socket = open_socket(self._context, kind, high_water_mark=DATA_MARK, largest_frame=DATA_BYTES)
        socket.setsockopt(zmq.SNDTIMEO, SEND_TIMEOUT_MS)
        return socket
