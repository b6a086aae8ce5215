"""The fact side of a hub: the sockets of publishers and subscribers, and who wants what. Links are not known here."""

from __future__ import annotations

from collections.abc import Sequence

import zmq

from bus.net.sockets import open_socket
from bus.wire import decode_header

TAP = b"tap."  # work passing through is repeated under this topic, for whoever inspects the bus


class PubSub:
    """Facts from local publishers (XSUB) to local subscribers (XPUB). Used on the hub's thread only."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.publishers = open_socket(context, zmq.XSUB)
        self.subscribers = open_socket(context, zmq.XPUB)
        self._wanted: set[bytes] = set()  # topics that our own actors subscribed to
        self._asked_for: set[bytes] = set()  # topics that our publishers are asked for

    def next_fact(self) -> list[bytes]:
        """The frames of a fact that a publisher sent."""
        return self.publishers.recv_multipart()

    def next_subscription(self) -> None:
        """Take note of a topic that a subscriber wants first, or that nobody here wants any more."""
        message = self.subscribers.recv()
        topic = message[1:]
        self._wanted.add(topic) if message[:1] == b"\x01" else self._wanted.discard(topic)

    def tell(self, frames: Sequence[bytes]) -> None:
        """Give a fact to the local subscribers of its topic."""
        self.subscribers.send_multipart(frames)

    def tap(self, frames: Sequence[bytes]) -> None:
        """Show work that passes through to those who watch; without its buffers, and free where nobody does."""
        if any(TAP.startswith(topic) or topic.startswith(TAP) for topic in self._wanted):
            kind = decode_header(frames).kind.encode()
            self.tell([TAP + kind, *frames[1:3]])

    def filter_at_source(self, wanted_elsewhere: set[bytes]) -> None:
        """Have our publishers send what anyone wants, here or behind a link, and nothing else."""
        wanted = self._wanted | wanted_elsewhere
        for topic in wanted - self._asked_for:
            self.publishers.send(b"\x01" + topic)
        for topic in self._asked_for - wanted:
            self.publishers.send(b"\x00" + topic)
        self._asked_for = wanted

    def topics(self) -> tuple[str, ...]:
        """What local actors subscribed to."""
        return tuple(sorted(topic.decode(errors="replace") for topic in self._wanted))
