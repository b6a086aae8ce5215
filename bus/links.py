"""A hub's links to other hubs: a DEALER and its monitor for each dial, and who is behind each routing id.

Carries out what `bus.mesh` decides; which messages travel over the links is the hub's business.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from bus.mesh import Action, Close, Dial, Mesh, Publish, SayHello
from bus.messages import HubPeer, LinkHello, LinkSubscribe, Message, PeerDown, PeerUp
from bus.sockets import connect, open_socket
from bus.wire import WireError, encode, new_header

logger = logging.getLogger(__name__)

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
        mesh: Mesh,
        introduction: Callable[[], LinkHello],
        announce: Callable[[PeerUp | PeerDown], None],
        counters: Counter[str],
    ) -> None:
        self._context, self._poller, self._mesh = context, poller, mesh
        self._introduction, self._announce, self._counters = introduction, announce, counters
        self._dealers: dict[str, zmq.Socket[bytes]] = {}
        self._monitors: dict[zmq.Socket[bytes], str] = {}
        self._nodes: dict[bytes, str] = {}  # routing id on the tcp port -> node id, after its hello
        self._wanted: dict[str, tuple[bytes, ...]] = {}  # node id -> topics its actors subscribed to

    # -- what comes in

    def dial(self, endpoint: str) -> None:
        """Begin a link to the hub at `endpoint`."""
        self._act(self._mesh.dial(endpoint))

    def drop(self, endpoint: str) -> None:
        """End the link to the hub at `endpoint`."""
        self._act(self._mesh.disconnected(endpoint, "it was dropped"))

    def greeted(self, source: bytes, hello: LinkHello, peer_address: str) -> None:
        """A hub said hello over its dial to us. Raises WireError for one that does not belong to us."""
        if reason := self._mesh.refusal(hello):
            logger.info("no link to %s at %s: %s", hello.name, hello.endpoint, reason)
        else:
            self._nodes[source] = hello.node_id
            self._wanted[hello.node_id] = _topics(hello.subscriptions)
        endpoint = hello.endpoint.replace("0.0.0.0", peer_address or "0.0.0.0")  # noqa: S104
        self._act(self._mesh.hello(msgspec.structs.replace(hello, endpoint=endpoint)))
        if reason:
            raise WireError("refused", reason)

    def node_of(self, source: bytes) -> str:
        """The node behind a routing id. Raises WireError where it never said hello."""
        if source not in self._nodes:
            raise WireError("stranger")
        return self._nodes[source]

    def wants(self, node_id: str, message: LinkSubscribe) -> None:
        """From now on a node hears these topics."""
        self._wanted[node_id] = _topics(message.subscriptions)

    def wanted(self) -> set[bytes]:
        """Every topic that some linked node wants."""
        return {topic for topics in self._wanted.values() for topic in topics}

    def left(self, node_id: str) -> None:
        """A node said good-bye."""
        self._act(self._mesh.left(node_id))

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

    def _tell(self, endpoint: str, message: Message) -> None:
        header = new_header(message, f"{self._mesh.node_id}/hub")
        self._push(endpoint, encode("/hub", header, message), "work dropped")

    # -- dials

    def _act(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Dial(endpoint):
                    self._open(endpoint)
                case Close(endpoint):
                    self._hang_up(endpoint)
                case SayHello(endpoint, heard):
                    self._introduce(endpoint, heard)
                case Publish(fact):
                    self._tell_own_node(fact)

    def _open(self, endpoint: str) -> None:
        dealer = open_socket(self._context, zmq.DEALER)
        monitor = dealer.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED | _LOST)
        self._dealers[endpoint], self._monitors[monitor] = dealer, endpoint
        self._poller.register(monitor, zmq.POLLIN)
        try:
            connect(dealer, endpoint)
        except ValueError as error:
            logger.warning("%s", error)
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

    def _introduce(self, endpoint: str, heard: LinkHello | None) -> None:
        answers = heard.dialled if heard else ""
        own = self._introduction()
        self._tell(endpoint, msgspec.structs.replace(own, dialled=endpoint, answers=answers, heard=heard is not None))

    def _tell_own_node(self, fact: PeerUp | PeerDown) -> None:
        if isinstance(fact, PeerDown):
            self._wanted.pop(fact.node_id, None)
            self._nodes = {source: node for source, node in self._nodes.items() if node != fact.node_id}
        self._announce(fact)


def _topics(subscriptions: Sequence[str]) -> tuple[bytes, ...]:
    return tuple(topic.encode() for topic in subscriptions)
