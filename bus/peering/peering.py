"""The network of a node in a cluster: the bus port, the links to other hubs, joining, and decisions about members."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bus.hub_context import HubContext
from bus.messages import (
    Header,
    HubPeer,
    LinkBye,
    LinkHello,
    LinkSubscribe,
    Message,
    PeerDial,
    PeerDrop,
    Reply,
    RequestDone,
    RequestFailed,
)
from bus.net.endpoints import node_of
from bus.net.listener import Listener
from bus.net.sockets import CurveServer
from bus.net.zap import ZapHandler
from bus.peering.admin import ClusterAdmin
from bus.peering.authenticator import BUS, Authenticator
from bus.peering.inbound_policy import InboundPolicy
from bus.peering.joining import Joining
from bus.peering.links import Links
from bus.peering.peer_network import PeerNetwork
from bus.peering.permissions import may_send
from bus.wire import WireError
from cluster.failures import FailureCode
from cluster.roles import Role
from common.config import DEFAULT_BUS_PORT, ports_to_try

ReceiveMessage = Callable[[str, Header, list[bytes]], None]
"""(node id, header, frames) of a message from another hub that the inbound policy allowed"""


class Peering(PeerNetwork):
    """`receive_message` is called for each message from another hub. Used on the hub's thread only."""

    def __init__(self, context: HubContext, authenticator: Authenticator, receive_message: ReceiveMessage) -> None:
        """Listen on the bus port and, on a member, the join port. Raises OSError with a sentence."""
        self._context, self._authenticator, self._receive_message = context, authenticator, receive_message
        self._subscriptions: tuple[str, ...] = ()
        self._policy = InboundPolicy(authenticator)
        self._links = Links(context, self._policy, authenticator.pair, self._hello)
        self._zap = ZapHandler(context.zmq_context, authenticator.authenticate)
        try:
            ports, curve = ports_to_try(context.config.bus_port, DEFAULT_BUS_PORT), CurveServer(authenticator.pair, BUS)
            self._port = Listener(context, ports, curve, self._read)
            self._joining = Joining(context, authenticator, self._links, self._port.endpoint)
        except OSError:
            self._zap.close()
            raise
        self._admin = ClusterAdmin(context, authenticator, self._links, self._joining.code_changed)

    @property
    def endpoint(self) -> str:
        return self._port.endpoint

    @property
    def join_endpoint(self) -> str:
        return self._joining.endpoint

    def peers(self) -> tuple[HubPeer, ...]:
        return self._links.peers()

    def name_of(self, node_id: str) -> str:
        member = self._authenticator.members.by_id.get(node_id)
        return member.name if member else node_id

    def forward(self, node_id: str, frames: Sequence[bytes]) -> bool:
        return self._links.forward(node_id, frames)

    def publish(self, frames: Sequence[bytes]) -> None:
        # Other hubs would drop what this node's role may not send.
        if may_send(self._authenticator.role, frames[0].decode(errors="replace")):
            self._links.publish(frames)

    def announce_topics(self, topics: tuple[str, ...]) -> None:
        self._subscriptions = topics
        self._links.send_all(LinkSubscribe(topics))

    def wanted_topics(self) -> set[bytes]:
        return self._links.wanted_topics()

    def serve_actor(self, work: Message) -> Reply:
        match work:
            case PeerDial(endpoint):
                try:
                    self._joining.join(endpoint)
                except ValueError as error:
                    return RequestFailed(FailureCode.BAD_ENDPOINT, str(error))
                return RequestDone()
            case PeerDrop(endpoint):
                self._links.drop(self._joining.bus_endpoint(endpoint))
                return RequestDone()
        return self._admin.serve_actor(work)

    def serve_hub(self, node_id: str, message: Message | None) -> bool:
        match message:
            case LinkHello():
                self._receive_hello(node_id, message)
            case LinkSubscribe(topics):
                self._links.subscribe(node_id, topics)
            case LinkBye():
                self._links.left(node_id)
            case _:
                return self._admin.serve_hub(message)
        return True

    def maintain(self, now: float) -> None:
        self._port.maintain(now)
        self._joining.maintain(now)

    def close(self) -> None:
        self._links.close()
        self._joining.close()
        self._port.close()
        self._zap.close()

    def _hello(self) -> LinkHello:
        config = self._context.config
        return LinkHello(
            config.node_id,
            config.name,
            config.incarnation,
            self.endpoint,
            self._subscriptions,
            join_endpoint=self.join_endpoint,
            revoked=self._authenticator.members.revoked,
        )

    def _read(self, node_id: str, _routing_id: bytes, frames: list[bytes]) -> None:
        self._receive_message(node_id, self._policy.check(node_id, frames), frames)

    def _receive_hello(self, node_id: str, hello: LinkHello) -> None:
        """Handle a hello, in which a hub names only itself and an endpoint with its own key. Raises WireError."""
        member = self._authenticator.member(node_id)
        if member is None or hello.node_id != node_id or not _is_of(hello.endpoint, node_id):
            raise WireError("sender")
        if member.role is Role.MEMBER:
            self._admin.revoke(hello.revoked)
        self._links.hello(hello, member.role)


def _is_of(endpoint: str, node_id: str) -> bool:
    try:
        return node_of(endpoint) == node_id
    except ValueError:
        return False
