"""Publishes the facts of one actor, as far as anyone subscribed to them."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import suppress

import zmq
import zmq.asyncio

from bus.messages import Fact, kind_of
from bus.net.sockets import connect_ipc, open_socket
from bus.sequencing import Sequencer
from bus.wire import WireError
from common.rate_limit import RateLimitedLogger

logger = logging.getLogger(__name__)


class FactPublisher:
    """An XPUB, which shows what the hub subscribes to. What cannot be sent is counted in `dropped`."""

    def __init__(self, context: zmq.asyncio.Context, sequencer: Sequencer, dropped: Counter[str]) -> None:
        self._socket = open_socket(context, zmq.XPUB)
        self._sequencer = sequencer
        self._dropped = dropped
        self._limited = RateLimitedLogger(logger)
        self._subscribed: set[bytes] = set()  # topics that the hub wants from this actor

    def connect(self, endpoint: str) -> None:
        """Start to connect to the hub."""
        connect_ipc(self._socket, endpoint)

    def has_subscribers(self, fact: type[Fact]) -> bool:
        """Return whether anyone subscribes to facts of this class, as `BusClient.has_subscribers` describes."""
        # No task reads the subscriptions: a fact that is published right after one came must not be lost.
        while int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            message = self._socket.recv()
            change = self._subscribed.add if message[:1] == b"\x01" else self._subscribed.discard
            change(message[1:])
        return kind_of(fact).encode().startswith(tuple(self._subscribed))

    def publish(self, fact: Fact) -> None:
        """Publish a fact, if it has subscribers."""
        if not self.has_subscribers(type(fact)):
            return
        kind = kind_of(type(fact))
        try:
            frames = self._sequencer.encode(kind, fact)
        except WireError as error:
            self._dropped["unsendable"] += 1
            self._limited.warning(kind, "%s is not published: %s", kind, error)
            return
        with suppress(zmq.Again):
            self._socket.send_multipart(frames, zmq.DONTWAIT)
