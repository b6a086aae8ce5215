"""A hub's links to other hubs: a DEALER and its monitor for each dial.

Carries out what `bus.peering.link_state` decides; which messages travel over the links is the hub's business.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from bus.messages import HubPeer, LinkHello, LinkSubscribe, Message, PeerDown, PeerUp
from bus.net.endpoints import node_of
from bus.net.keys import KeyPair
from bus.net.sockets import connect, open_socket
from bus.peering.link_state import Action, Close, Dial, LinkState, Publish, SayHello
from bus.sequencing import Sequencer
from bus.wire import encode
from cluster.roles import Role
from common.rate_limit import RateLimitedLogger

limited = RateLimitedLogger(logging.getLogger(__name__))

_LOST = (
    zmq.Event.DISCONNECTED
    | zmq.Event.CLOSED
    | zmq.Event.CONNECT_RETRIED
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
)


class Links:
    """`introduction` makes our hello, `announce` tells our own actors. Used on the hub's thread only."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        poller: zmq.Poller,
        mesh: LinkState,
        own: KeyPair | None,
        numbers: Sequencer,
        introduction: Callable[[], LinkHello],
        announce: Callable[[PeerUp | PeerDown], None],
        counters: Counter[str],
    ) -> None:
        self._context, self._poller, self._mesh, self._own = context, poller, mesh, own
        self._numbers = numbers
        self._introduction, self._announce, self._counters = introduction, announce, counters
        self._dealers: dict[str, zmq.Socket[bytes]] = {}
        self._monitors: dict[zmq.Socket[bytes], str] = {}
        self._wanted: dict[str, tuple[bytes, ...]] = {}  # node id -> topics its actors subscribed to

    # -- what comes in

    def dial(self, endpoint: str) -> None:
        """Begin a link to the hub at `endpoint`."""
        self._act(self._mesh.dial(endpoint))

    def drop(self, endpoint: str) -> None:
        """End the link to the hub at `endpoint`."""
        self._act(self._mesh.disconnected(endpoint, "it was dropped"))

    def greeted(self, hello: LinkHello, role: Role) -> None:
        """A member's hub said hello over its dial to us."""
        self._wanted[hello.node_id] = _topics(hello.subscriptions)
        self._act(self._mesh.hello(hello, role))

    def wants(self, node_id: str, message: LinkSubscribe) -> None:
        """From now on a node hears these topics."""
        self._wanted[node_id] = _topics(message.subscriptions)

    def wanted(self) -> set[bytes]:
        """Every topic that some linked node wants."""
        return {topic for topics in self._wanted.values() for topic in topics}

    def left(self, node_id: str) -> None:
        """A node said good-bye."""
        self._act(self._mesh.left(node_id))

    def cut(self, node_id: str, farewell: Message, reason: str) -> None:
        """End the link to a node and tell it so, or it would take its own dial for a link."""
        if endpoint := self._mesh.endpoint_of(node_id):
            self._dealers[endpoint].setsockopt(zmq.LINGER, 300)
            self._tell(endpoint, farewell)
        self._act(self._mesh.left(node_id, reason))

    def from_monitor(self, monitor: zmq.Socket[bytes]) -> None:
        """A dial got through, or broke."""
        endpoint = self._monitors.get(monitor)
        if endpoint is None:
            return
        event = recv_monitor_message(monitor)["event"]
        if event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self._act(self._mesh.connected(endpoint))
        elif event & _LOST:
            self._act(self._mesh.disconnected(endpoint, "the connection broke"))

    # -- what goes out

    def standing(self) -> tuple[HubPeer, ...]:
        """All links that stand."""
        return self._mesh.standing()

    def life_of(self, node_id: str) -> int | None:
        """The incarnation of a node to which a link stands."""
        return self._mesh.life_of(node_id)

    def tell(self, node_id: str, message: Message) -> bool:
        """Send a message to a node's hub itself; False where no link stands or the link is full."""
        endpoint = self._mesh.endpoint_of(node_id)
        return endpoint is not None and self._tell(endpoint, message)

    def forward(self, node_id: str, frames: Sequence[bytes]) -> bool:
        """Send work to a node; False where no link to it stands or the link is full."""
        endpoint = self._mesh.endpoint_of(node_id)
        return endpoint is not None and self._push(endpoint, frames, "work dropped")

    def publish(self, frames: Sequence[bytes]) -> None:
        """Send a fact to every linked hub that wants its topic."""
        for peer in self._mesh.standing():
            if frames[0].startswith(self._wanted.get(peer.node_id, ())):
                self._push(peer.endpoint, frames, "fact dropped")

    def tell_all(self, message: Message) -> None:
        """Send a message to every linked hub itself."""
        for peer in self._mesh.standing():
            self._tell(peer.endpoint, message)

    def close(self, farewell: Message) -> None:
        """Say good-bye and close every dial; the good-byes have 300 ms to get out."""
        for peer in self._mesh.standing():
            self._dealers[peer.endpoint].setsockopt(zmq.LINGER, 300)
        self.tell_all(farewell)
        for endpoint in list(self._dealers):
            self._hang_up(endpoint)

    def _push(self, endpoint: str, frames: Sequence[bytes], count_as: str) -> bool:
        try:
            self._dealers[endpoint].send_multipart(frames, zmq.DONTWAIT)
        except zmq.Again:
            self._counters[count_as] += 1
            return False
        return True

    def _tell(self, endpoint: str, message: Message) -> bool:
        to = f"{node_of(endpoint)}/hub"
        return self._push(endpoint, encode(to, self._numbers.header(message, to), message), "work dropped")

    # -- dials

    def _act(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Dial(endpoint):
                    self._open(endpoint)
                case Close(endpoint):
                    self._hang_up(endpoint)
                case SayHello(endpoint, heard):
                    self._tell(endpoint, msgspec.structs.replace(self._introduction(), heard=heard))
                case Publish(fact):
                    self._tell_own_node(fact)

    def _open(self, endpoint: str) -> None:
        dealer = open_socket(self._context, zmq.DEALER)
        monitor = dealer.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED | _LOST)
        self._dealers[endpoint], self._monitors[monitor] = dealer, endpoint
        self._poller.register(monitor, zmq.POLLIN)
        assert self._own is not None, "a node that stands alone dials nobody"
        try:
            connect(dealer, endpoint, self._own)
        except ValueError as error:
            limited.warning("no end point", "%s", error)
            self._act(self._mesh.disconnected(endpoint, "it is no end point"))

    def _hang_up(self, endpoint: str) -> None:
        dealer = self._dealers.pop(endpoint, None)
        if dealer is None:
            return
        dealer.disable_monitor()
        for monitor in [m for m, e in self._monitors.items() if e == endpoint]:
            del self._monitors[monitor]
            self._poller.unregister(monitor)
            monitor.close(0)
        dealer.close()

    def _tell_own_node(self, fact: PeerUp | PeerDown) -> None:
        if isinstance(fact, PeerDown):
            self._wanted.pop(fact.node_id, None)
        self._announce(fact)


def _topics(subscriptions: Sequence[str]) -> tuple[bytes, ...]:
    return tuple(topic.encode() for topic in subscriptions)
