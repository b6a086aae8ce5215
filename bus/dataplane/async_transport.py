"""The data plane of an asyncio loop: what `bus.dataplane.transport` does for a thread, for a gateway.

Frames that are lost on the way in are not counted here: they show as gaps in the tokens' positions.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import numpy as np
import zmq
import zmq.asyncio

from bus.dataplane.access import LOCAL, Access
from bus.dataplane.connections import Connections
from bus.dataplane.frames import Frame, FrameError, pack_part, unpack
from bus.dataplane.inbound_connections import InboundConnections
from bus.dataplane.transport import LINGER_MS, Received
from bus.net.sockets import open_async_socket


class AsyncTransport:
    """A ROUTER that receives and a DEALER for each endpoint that frames go to, on one loop."""

    def __init__(self, run_dir: Path, name: str, access: Access = LOCAL) -> None:
        """Listen on an ipc endpoint of the node and, in a cluster, on a free tcp port. Raises OSError."""
        self.dropped: Counter[str] = Counter()
        self._access = access
        self._context = zmq.asyncio.Context()
        self._zap = access.start_zap(zmq.Context(self._context))
        self._inbox = open_async_socket(self._context, zmq.ROUTER)
        self.endpoints = access.bind(self._inbox, run_dir, name)
        self._inbound = InboundConnections(access)
        self._connections: Connections[zmq.asyncio.Socket] = Connections(self._dial, _close, access.role_of)

    async def receive(self) -> Received:
        """Wait for the next frame; return it, its payload and its sender.

        Invalid frames and those of nodes that are not linked are counted and dropped.
        """
        while True:
            source, *parts = await self._inbox.recv_multipart(copy=False)
            try:
                if source.bytes not in self._inbound:
                    self._inbound.add(source.bytes, parts[0])
                sender = self._inbound.sender(source.bytes)
                if len(parts) != 1:
                    raise FrameError("parts")
                frame, payload = unpack(parts[0].bytes)
                self._inbound.is_next(source.bytes, frame.sequence)
            except FrameError as error:
                self.dropped[error.reason] += 1
            else:
                return frame, payload, sender

    def send(self, endpoint: str, frame: Frame, payload: bytes, *, wait: bool = True) -> asyncio.Future[object]:
        """Send one frame; the future is done when libzmq has taken it.

        Without `wait` it fails with zmq.Again if libzmq cannot take the frame now. Raises ValueError for a malformed
        endpoint, and NotLinked, which is one, if its node is not linked.
        """
        connection = self._connections.get(endpoint)
        array = np.frombuffer(payload, np.uint8)
        message = pack_part(frame, frame.flags, frame.position, array, connection.next_sequence())
        return asyncio.ensure_future(connection.socket.send(message, 0 if wait else zmq.DONTWAIT))

    def disconnect(self, endpoint: str) -> None:
        """Close the connection to an endpoint that could not be reached, with the frames that wait in it."""
        self._connections.discard(endpoint)

    def close(self) -> None:
        """Close every socket; frames on their way get a moment."""
        if self._zap:
            self._zap.close()
        self._context.destroy(linger=LINGER_MS)

    def _dial(self, endpoint: str) -> tuple[zmq.asyncio.Socket, str]:
        dealer = open_async_socket(self._context, zmq.DEALER)
        try:
            return dealer, self._access.dial(dealer, endpoint)
        except ValueError:
            dealer.close()
            raise


def _close(dealer: zmq.asyncio.Socket) -> None:
    dealer.close(linger=LINGER_MS)
