"""Work that is addressed to a hub itself: by actors of its own node, and by other nodes' hubs. Knows no routing."""

from __future__ import annotations

import os
import time
from collections import Counter

from bus.actor_registry import ActorRegistry
from bus.messages import (
    ActorHello,
    ClusterRotate,
    HubActor,
    HubDescribe,
    HubState,
    LinkBye,
    LinkHello,
    LinkSubscribe,
    MemberApprove,
    MemberRevoke,
    MembersGet,
    Message,
    PeerDial,
    PeerDrop,
    Reply,
    RequestCancel,
    RequestDone,
    RequestFailed,
)
from bus.net.endpoints import node_of
from bus.peering.admin import ClusterAdmin
from bus.peering.authenticator import Authenticator
from bus.peering.links import Links
from bus.peering.peering import Peering
from bus.pubsub import PubSub
from bus.wire import Envelope, WireError
from cluster.failures import FailureCode
from cluster.roles import Role
from common.config import NodeConfig

ALONE = "this node stands alone; make a cluster with `exobus cluster init`, or join one with `exobus node --join CODE`"
_OUTSIDE = (PeerDial, PeerDrop, MembersGet, MemberRevoke, MemberApprove, ClusterRotate)


class ClusterSide:
    """What a hub in a cluster has, and one that stands alone has not."""

    def __init__(self, door: Authenticator, outside: Peering, cluster: ClusterAdmin) -> None:
        self.door, self.outside, self.cluster = door, outside, cluster


class HubService:
    """Used on the hub's thread only. Each method returns the answer, if there is to be one."""

    def __init__(
        self,
        config: NodeConfig,
        roster: ActorRegistry,
        links: Links,
        facts: PubSub,
        counters: Counter[str],
        beyond: ClusterSide | None,
    ) -> None:
        self._config, self._roster, self._links, self._facts = config, roster, links, facts
        self._counters, self._beyond = counters, beyond

    def hello(self, message: ActorHello, routing_id: bytes) -> bool:
        """An actor says that it is there; true for the first time."""
        return self._roster.meet(message, routing_id, time.monotonic())

    def from_actor(self, envelope: Envelope) -> Reply | None:
        """Work of the own node."""
        message, beyond = envelope.message, self._beyond
        if isinstance(message, HubDescribe):
            return self._state()
        if not isinstance(message, _OUTSIDE):
            return _unsupported(envelope)
        if beyond is None:
            return RequestFailed(FailureCode.STANDALONE, ALONE)
        if isinstance(message, PeerDial):
            return self._dial(beyond.outside, message.endpoint)
        if isinstance(message, PeerDrop):
            self._links.drop(beyond.outside.join_endpoints.get(message.endpoint, message.endpoint))
            return RequestDone()
        return beyond.cluster.serve(message)

    def from_hub(self, node_id: str, envelope: Envelope) -> Reply | None:
        """Work of a member's hub. Raises WireError."""
        assert self._beyond is not None, "a node that stands alone hears no hub"
        message = envelope.message
        if isinstance(message, HubDescribe):
            return self._state()
        if isinstance(message, LinkHello):
            self._greeted(self._beyond, node_id, message)
        elif isinstance(message, LinkSubscribe):
            self._links.wants(node_id, message)
        elif isinstance(message, LinkBye):
            self._links.left(node_id)
        elif not self._beyond.cluster.hear(message):
            return _unsupported(envelope)
        return None

    def _greeted(self, beyond: ClusterSide, node_id: str, hello: LinkHello) -> None:
        """A hub says hello: it can only speak for itself, and names an end point with its own key."""
        member = beyond.door.member(node_id)
        if member is None or hello.node_id != node_id or not _names(hello.endpoint, node_id):
            raise WireError("sender")
        if member.role is Role.MEMBER:
            beyond.cluster.revoke(hello.revoked)
        self._links.greeted(hello, member.role)

    def _dial(self, outside: Peering, endpoint: str) -> Reply:
        try:
            outside.knock(endpoint)
        except ValueError as error:
            return RequestFailed(FailureCode.BAD_ENDPOINT, str(error))
        return RequestDone()

    def _state(self) -> HubState:
        own = HubActor("hub", os.getpid())
        outside = self._beyond.outside if self._beyond else None
        return HubState(
            self._config.node_id,
            self._config.name,
            outside.bus.endpoint if outside else "",
            (own, *self._roster.present(time.monotonic())),
            self._links.standing(),
            self._facts.topics(),
            dict(self._counters),
            outside.join_address if outside else "",
            self._config.cluster,
        )


def _unsupported(envelope: Envelope) -> Reply | None:
    """Say so to whoever asks for what a hub does not do; replies and cancels are nothing to answer."""
    message: Message | None = envelope.message
    if isinstance(message, Reply | RequestCancel) or envelope.header.cause:
        return None
    return RequestFailed(FailureCode.UNSUPPORTED, f"a hub does not serve {envelope.header.kind}")


def _names(endpoint: str, node_id: str) -> bool:
    try:
        return node_of(endpoint) == node_id
    except ValueError:
        return False
