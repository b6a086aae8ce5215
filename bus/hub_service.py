"""Serves work that is addressed to the hub itself, by actors of its own node and by other hubs. Knows no routing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from bus.actor_registry import ActorRegistry
from bus.address import HUB
from bus.hub_context import HubContext
from bus.messages import (
    ActorHello,
    ActorUp,
    ClusterRotate,
    HubActor,
    HubDescribe,
    HubState,
    MemberApprove,
    MemberRevoke,
    MembersGet,
    PeerDial,
    PeerDrop,
    Reply,
    RequestCancel,
    RequestFailed,
)
from bus.peering.peer_network import PeerNetwork
from bus.pubsub import PubSub
from bus.wire import Envelope
from cluster.failures import FailureCode

_NETWORK_WORK = (PeerDial, PeerDrop, MembersGet, MemberRevoke, MemberApprove, ClusterRotate)


class HubService:
    """Used on the hub's thread only. Methods return the reply, or None if there is none to send.

    `is_connected` says of a routing id whether the connection of its actor stands.
    """

    def __init__(
        self,
        context: HubContext,
        registry: ActorRegistry,
        facts: PubSub,
        network: PeerNetwork,
        is_connected: Callable[[bytes], bool],
    ) -> None:
        self._context, self._registry, self._facts, self._network = context, registry, facts, network
        self._is_connected = is_connected

    def serve_actor(self, envelope: Envelope, routing_id: bytes) -> Reply | None:
        """Serve work of an actor of this node, whose connection has the routing id."""
        message = envelope.message
        if isinstance(message, ActorHello):
            if self._registry.register(message, routing_id, time.monotonic()):
                self._context.publish(ActorUp(message.name, message.pid))
            return None
        if isinstance(message, HubDescribe):
            return self._state()
        if isinstance(message, _NETWORK_WORK):
            return self._network.serve_actor(message)
        return _unsupported(envelope)

    def serve_hub(self, node_id: str, envelope: Envelope) -> Reply | None:
        """Serve work of the hub of another node. Raises WireError if it is not valid."""
        if isinstance(envelope.message, HubDescribe):
            return self._state()
        return None if self._network.serve_hub(node_id, envelope.message) else _unsupported(envelope)

    def _state(self) -> HubState:
        config = self._context.config
        return HubState(
            config.node_id,
            config.name,
            self._network.endpoint,
            (HubActor(HUB, os.getpid()), *self._registry.present(time.monotonic(), self._is_connected)),
            self._network.peers(),
            self._facts.topics(),
            dict(self._context.counters),
            self._network.join_endpoint,
            config.cluster,
        )


def _unsupported(envelope: Envelope) -> Reply | None:
    """Return the failure for work of another kind. Replies and cancels are never answered."""
    if isinstance(envelope.message, Reply | RequestCancel) or envelope.header.cause:
        return None
    return RequestFailed(FailureCode.UNSUPPORTED, f"a hub does not serve {envelope.header.kind}")
