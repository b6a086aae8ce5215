"""A hub's links to other hubs: a DEALER and its monitor for each, and the topics that the other side wants.

`bus.peering.link_state` decides what to open, close and publish; this module does it. Messages from other hubs come in
over the bus port (`bus.peering.peering`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from bus.address import HUB, Address
from bus.hub_context import HubContext
from bus.messages import HubPeer, LinkBye, LinkHello, Message
from bus.net.endpoints import node_of
from bus.net.keys import KeyPair
from bus.net.sockets import connect, open_socket
from bus.peering.inbound_policy import InboundPolicy
from bus.peering.link_state import Action, Close, Dial, Forget, LinkState, Publish, SendHello, Subscribe
from cluster.roles import Role
from common.rate_limit import RateLimitedLogger

limited = RateLimitedLogger(logging.getLogger(__name__))

BYE_LINGER_MS = 300  # for a `link.bye` to get out
_LOST = (
    zmq.Event.DISCONNECTED
    | zmq.Event.CLOSED
    | zmq.Event.CONNECT_RETRIED
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
)


class _Connection(NamedTuple):
    dealer: zmq.Socket[bytes]
    monitor: zmq.Socket[bytes]
    number: int


class Links:
    """Used on the hub's thread only. `own` is the node's key pair, and `make_hello` makes the hello that it sends."""

    def __init__(
        self, context: HubContext, policy: InboundPolicy, own: KeyPair, make_hello: Callable[[], LinkHello]
    ) -> None:
        self._context, self._policy, self._own, self._make_hello = context, policy, own, make_hello
        self._state = LinkState()
        self._connections: dict[str, _Connection] = {}  # by endpoint
        # From the clock since boot, so that the numbers also rise from one hub process of the node to the next.
        self._numbers = count(time.monotonic_ns())
        self._topics: dict[str, tuple[bytes, ...]] = {}  # by the id of the node whose actors subscribed to them

    # -- events

    def dial(self, endpoint: str) -> None:
        """Link to the hub at a bus port, unless that is done or under way."""
        self._do(self._state.dial(endpoint))

    def drop(self, endpoint: str) -> None:
        """End the link to the hub at a bus port."""
        self._do(self._state.disconnected(endpoint, "it was dropped"))

    def hello(self, hello: LinkHello, role: Role) -> None:
        """Handle the hello of another hub."""
        self._do(self._state.hello(hello, role))

    def subscribe(self, node_id: str, topics: Sequence[str]) -> None:
        """Send a node the facts of these topics from now on, and no others."""
        self._topics[node_id] = tuple(topic.encode() for topic in topics)

    def left(self, node_id: str) -> None:
        """End the link to a node that sent `link.bye`."""
        self._do(self._state.left(node_id))

    def cut(self, node_id: str, reason: str) -> None:
        """End the link to a node and send it `link.bye`; otherwise the link would stay up on its side."""
        if endpoint := self._state.endpoint_of(node_id):
            self._connections[endpoint].dealer.setsockopt(zmq.LINGER, BYE_LINGER_MS)
            self._send(endpoint, LinkBye())
        self._do(self._state.left(node_id, reason))

    # -- what is linked

    def peers(self) -> tuple[HubPeer, ...]:
        """Return the hubs to which a link is up."""
        return self._state.peers()

    def incarnation_of(self, node_id: str) -> int | None:
        """Return the incarnation of a node to which a link is up, else None."""
        return self._state.incarnation_of(node_id)

    def wanted_topics(self) -> set[bytes]:
        """Return all topics to which a node subscribed."""
        return {topic for topics in self._topics.values() for topic in topics}

    # -- outgoing messages

    def send(self, node_id: str, message: Message) -> bool:
        """Send a message to a node's hub itself. Returns False if no link to it is up, or its queue is full."""
        endpoint = self._state.endpoint_of(node_id)
        return endpoint is not None and self._send(endpoint, message)

    def send_all(self, message: Message) -> None:
        """Send a message to every linked hub itself."""
        for peer in self.peers():
            self._send(peer.endpoint, message)

    def forward(self, node_id: str, frames: Sequence[bytes]) -> bool:
        """Send work to a node. Returns False if no link to it is up, or its queue is full."""
        endpoint = self._state.endpoint_of(node_id)
        return endpoint is not None and self._push(endpoint, frames, "work dropped")

    def publish(self, frames: Sequence[bytes]) -> None:
        """Send a fact to every linked hub that subscribed to its topic."""
        for peer in self.peers():
            if frames[0].startswith(self._topics.get(peer.node_id, ())):
                self._push(peer.endpoint, frames, "fact dropped")

    def close(self) -> None:
        """Send `link.bye` to all linked hubs and close all sockets."""
        for peer in self.peers():
            self._connections[peer.endpoint].dealer.setsockopt(zmq.LINGER, BYE_LINGER_MS)
        self.send_all(LinkBye())
        for endpoint in list(self._connections):
            self._close(endpoint)

    def _send(self, endpoint: str, message: Message) -> bool:
        to = Address(node_of(endpoint), HUB)
        return self._push(endpoint, self._context.sequencer.encode(to, message), "work dropped")

    def _push(self, endpoint: str, frames: Sequence[bytes], counter: str) -> bool:
        try:
            self._connections[endpoint].dealer.send_multipart(frames, zmq.DONTWAIT)
        except zmq.Again:
            self._context.counters[counter] += 1
            return False
        return True

    # -- connections

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Dial(endpoint):
                    self._open(endpoint)
                case Close(endpoint):
                    self._close(endpoint)
                case SendHello(endpoint, received):
                    self._send_hello(endpoint, received)
                case Publish(fact):
                    self._context.publish(fact)
                case Subscribe(node_id, topics):
                    self.subscribe(node_id, topics)
                case Forget(node_id):
                    self._topics.pop(node_id, None)
                    self._policy.forget(node_id)

    def _send_hello(self, endpoint: str, received: bool) -> None:
        number = self._connections[endpoint].number
        self._send(endpoint, msgspec.structs.replace(self._make_hello(), hello_received=received, connection=number))

    def _open(self, endpoint: str) -> None:
        dealer = open_socket(self._context.zmq_context, zmq.DEALER)
        monitor = dealer.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED | _LOST)
        self._connections[endpoint] = _Connection(dealer, monitor, next(self._numbers))
        self._context.reactor.register(monitor, partial(self._read_event, endpoint, monitor))
        try:
            connect(dealer, endpoint, self._own)
        except ValueError as error:
            limited.warning("no endpoint", "%s", error)
            self._do(self._state.disconnected(endpoint, "it is no endpoint"))

    def _read_event(self, endpoint: str, monitor: zmq.Socket[bytes]) -> None:
        event = recv_monitor_message(monitor)["event"]
        if event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self._do(self._state.connected(endpoint))
        elif event & _LOST:
            self._do(self._state.disconnected(endpoint, "the connection broke"))

    def _close(self, endpoint: str) -> None:
        if connection := self._connections.pop(endpoint, None):
            connection.dealer.disable_monitor()
            self._context.reactor.unregister(connection.monitor)
            connection.monitor.close(0)
            connection.dealer.close()
