"""The facts of one node: an XSUB for its publishers and an XPUB for its subscribers, with a filter at the source."""

from __future__ import annotations

from collections.abc import Sequence

import zmq

from bus.hub_context import HubContext
from bus.messages import LocalFact, kind_of
from bus.net.endpoints import HubPaths
from bus.net.sockets import bind_ipc, open_socket
from bus.peering.peer_network import PeerNetwork
from bus.wire import decode_header

TAP = b"tap."  # work that passes through a hub is repeated under this topic, for tools that inspect the bus


class PubSub:
    """Passes facts from the node's publishers to its subscribers and to the network. Used on the hub's thread only."""

    def __init__(self, context: HubContext, network: PeerNetwork) -> None:
        """Bind both sockets. Raises OSError with a sentence."""
        self._context, self._network = context, network
        self._publishers = open_socket(context.zmq_context, zmq.XSUB)
        self._subscribers = open_socket(context.zmq_context, zmq.XPUB)
        self._topics: set[bytes] = set()  # that actors of this node subscribed to
        self._requested: set[bytes] = set()  # that the publishers of this node send
        paths = HubPaths(context.config.run_path)
        bind_ipc(self._publishers, paths.facts_in)
        bind_ipc(self._subscribers, paths.facts_out)
        context.reactor.register(self._publishers, self._forward)
        context.reactor.register(self._subscribers, self._read_subscription)

    def publish(self, fact: LocalFact) -> None:
        """Publish a fact of the hub itself on this node."""
        kind = kind_of(type(fact))
        self.send(self._context.sequencer.encode(kind, fact))

    def send(self, frames: Sequence[bytes]) -> None:
        """Send a fact to the node's subscribers of its topic."""
        self._subscribers.send_multipart(frames)

    def tap(self, frames: Sequence[bytes]) -> None:
        """Repeat work that passes through under the `tap.` topic of its kind, if anyone subscribed to that."""
        if any(TAP.startswith(topic) or topic.startswith(TAP) for topic in self._topics):
            kind = decode_header(frames).kind.encode()
            self.send([TAP + kind, *frames[1:3]])

    def update_filter(self) -> None:
        """Subscribe at the node's publishers to what is wanted now, on this node or on a linked one."""
        wanted = self._topics | self._network.wanted_topics()
        for topic in wanted - self._requested:
            self._publishers.send(b"\x01" + topic)
        for topic in self._requested - wanted:
            self._publishers.send(b"\x00" + topic)
        self._requested = wanted

    def topics(self) -> tuple[str, ...]:
        """Return the topics that actors of this node subscribed to, sorted."""
        return tuple(sorted(topic.decode(errors="replace") for topic in self._topics))

    def close(self) -> None:
        """Close both sockets."""
        self._publishers.close(0)
        self._subscribers.close(0)

    def _forward(self) -> None:
        frames = self._publishers.recv_multipart()
        self.send(frames)
        self._network.publish(frames)

    def _read_subscription(self) -> None:
        message = self._subscribers.recv()  # 1 or 0, and a topic that gets its first or loses its last subscriber
        topic = message[1:]
        self._topics.add(topic) if message[:1] == b"\x01" else self._topics.discard(topic)
        self._network.announce_topics(self.topics())
        self.update_filter()
