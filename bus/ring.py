"""Data-plane sockets of one thread: a ROUTER that hears, a DEALER for each neighbour. Blocking, no asyncio.

Moves frames and counts what is lost; what a frame means is the stage's business. A sender keeps a dead neighbour's
frames from queueing: it fails within a deadline instead.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zmq

from bus.frame import FRAGMENT_BYTES, Flag, Frame, FrameError, pack_part, unpack
from bus.sockets import DATA_BYTES, DATA_MARK, bind_tcp, connect, open_socket

Array = npt.NDArray[np.generic]

SEND_WITHIN_MS = 2000
LINGER_MS = 200
GONE_FOR_S = 5.0  # so long nobody waits again for a neighbour that took nothing
COPY_BELOW = 64 << 10  # bytes; handing a smaller frame over without a copy costs more than the copy
MAX_SENDERS = 1024  # a sender that reconnects counts as a new one
WAKE, WAKER = "inproc://wake", b"waker"  # nobody else can take this routing id: it is connected first
NOBODY = b""
READABLE = int(zmq.POLLIN)
MAX_NEIGHBOURS = 64  # gateways come and go; the one used longest ago is closed


class NeighbourGone(Exception):
    """A frame could not be handed to a neighbour in time."""


class Ring:
    """One thread's data plane. Make it, use it and close it on that thread."""

    def __init__(self, run_dir: Path, name: str, host: str) -> None:
        """Listen on an ipc end point of the node and on a free tcp port of `host`. Raises OSError."""
        self.dropped: Counter[str] = Counter()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._inbox = self._open(zmq.ROUTER)
        ipc = f"ipc://{run_dir}/{name}.ring"
        Path(ipc.removeprefix("ipc://")).unlink(missing_ok=True)
        self._inbox.bind(ipc)
        self.endpoints = (ipc, bind_tcp(self._inbox, host, 0))
        self._neighbours: OrderedDict[str, zmq.Socket[bytes]] = OrderedDict()
        self._gone: dict[str, float] = {}  # end point -> when it may be tried again
        self._sent: Counter[str] = Counter()
        self._heard: OrderedDict[bytes, int] = OrderedDict()
        self._waking = threading.Lock()  # a socket must not be used while it is closed
        self._inbox.bind(WAKE)
        self._waker = self._open(zmq.DEALER)
        self._waker.setsockopt(zmq.ROUTING_ID, WAKER)
        self._waker.connect(WAKE)
        self._patience_ms = 0

    def wake(self) -> None:
        """End a waiting `receive` early. The one method for other threads, also after `close`."""
        with self._waking, suppress(zmq.Again):  # enough wake-ups wait there already
            if not self._waker.closed:
                self._waker.send(b"", zmq.DONTWAIT)

    def receive(self, milliseconds: int = 0) -> tuple[Frame, Array] | None:
        """The next frame, waited for at most so long. None when none came, or when we were woken.

        What is not ours is counted and dropped. One blocking call, because each one costs a token its time.
        """
        while True:
            source, message = self._take(milliseconds)
            if source in (NOBODY, WAKER):
                return None
            try:
                frame, payload = unpack(message)
            except FrameError as error:
                self.dropped[error.reason] += 1
                continue
            self._check_sequence(source, frame)
            return frame, payload

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
        message = inbox.recv()
        while inbox.getsockopt(zmq.RCVMORE):
            inbox.recv()
            message = b""
        return source, message

    def send(self, endpoint: str, frame: Frame, payload: Array | bytes) -> None:
        """Hand one frame to a neighbour, rows cut into fragments of at most 256 KiB. The array is not written again.

        Raises NeighbourGone after two seconds, and at once for five seconds more.
        """
        dealer = self._neighbour(endpoint)
        array = np.frombuffer(payload, np.uint8) if isinstance(payload, bytes) else payload
        if array.ndim == 1 or array.nbytes <= FRAGMENT_BYTES:  # every decode step: written out, since it runs cold
            self._push(dealer, endpoint, frame, frame.flags, frame.position, array)
            return
        step = FRAGMENT_BYTES // (array.nbytes // len(array))
        for at in range(0, len(array), step):
            more = Flag.MORE if at + step < len(array) else 0
            self._push(dealer, endpoint, frame, frame.flags | more, frame.position + at, array[at : at + step])

    def introduce(self, endpoint: str) -> None:
        """Connect ahead of the first frame, also to one that was gone. Raises ValueError for what is no end point."""
        self._gone.pop(endpoint, None)
        self._neighbour(endpoint)

    def close(self) -> None:
        """Close every socket; frames on their way out, such as a close, have a moment."""
        with self._waking:
            self._waker.close()
        self._context.destroy(linger=LINGER_MS)

    def _push(
        self, dealer: zmq.Socket[bytes], endpoint: str, frame: Frame, flags: int, position: int, part: Array
    ) -> None:
        sequence = self._sent[endpoint] = self._sent[endpoint] + 1
        message = pack_part(frame, flags, position, part, sequence)
        try:
            dealer.send(message, 0, copy=len(message) < COPY_BELOW)
        except zmq.Again:
            self._neighbours.pop(endpoint).close()
            self._gone[endpoint] = time.monotonic() + GONE_FOR_S
            raise NeighbourGone(f"{endpoint} took nothing for {SEND_WITHIN_MS / 1000:g} s") from None

    def _neighbour(self, endpoint: str) -> zmq.Socket[bytes]:
        dealer = self._neighbours.get(endpoint)
        if dealer is None:
            self._check_gone(endpoint)
            dealer = self._connected(endpoint)
            self._neighbours[endpoint] = dealer
            self._sent[endpoint] = 0
            while len(self._neighbours) > MAX_NEIGHBOURS:
                self._neighbours.popitem(last=False)[1].close()
        self._neighbours.move_to_end(endpoint)
        return dealer

    def _connected(self, endpoint: str) -> zmq.Socket[bytes]:
        dealer = self._open(zmq.DEALER)
        try:
            connect(dealer, endpoint)
        except ValueError:
            dealer.close()
            raise
        return dealer

    def _check_gone(self, endpoint: str) -> None:
        now = time.monotonic()
        self._gone = {gone: until for gone, until in self._gone.items() if until > now}
        if endpoint in self._gone:
            raise NeighbourGone(f"{endpoint} took nothing a moment ago")

    def _open(self, kind: int) -> zmq.Socket[bytes]:
        socket = open_socket(self._context, kind, high_water_mark=DATA_MARK, largest_frame=DATA_BYTES)
        socket.setsockopt(zmq.SNDTIMEO, SEND_WITHIN_MS)
        return socket

    def _check_sequence(self, source: bytes, frame: Frame) -> None:
        if frame.sequence != self._heard.get(source, 0) + 1:
            self.dropped["lost before this frame"] += 1
        self._heard[source] = frame.sequence
        self._heard.move_to_end(source)
        while len(self._heard) > MAX_SENDERS:
            self._heard.popitem(last=False)


def best_endpoint(endpoints: Sequence[str]) -> str:
    """The end point to use from here: ipc where its file is on this machine, else the first tcp one.

    The file's folder has a random name, so finding it means the same machine. Raises ValueError where none is left.
    """
    for endpoint in endpoints:
        if not endpoint.startswith("ipc://") or os.path.exists(endpoint.removeprefix("ipc://")):
            return endpoint
    raise ValueError(f"none of the end points {', '.join(endpoints)} can be reached from this machine")
