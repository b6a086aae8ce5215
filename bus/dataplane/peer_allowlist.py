"""The nodes from which a process accepts data-plane connections: those that its own hub is linked to.

The data plane's actor updates it as links come and go; the ZAP handler's thread and the data plane's thread only read
it.
"""

from __future__ import annotations

from collections.abc import Iterable

from bus.messages import HubPeer, PeerUp
from bus.net.endpoints import key_of, node_of
from cluster.roles import Role


class PeerAllowlist:
    """The linked nodes by key and by id, this node among them."""

    def __init__(self, own_key: bytes, own_id: str) -> None:
        self._ids = {own_key: own_id}
        self._roles = {own_id: Role.MEMBER}

    def add(self, peers: Iterable[HubPeer | PeerUp]) -> None:
        """Accept these linked nodes."""
        for peer in peers:
            self._roles[peer.node_id] = peer.role
            self._ids[key_of(peer.endpoint)] = node_of(peer.endpoint)

    def remove(self, node_id: str) -> None:
        """Stop accepting a node, also over the connections that it has open."""
        self._roles.pop(node_id, None)
        self._ids = {key: node for key, node in self._ids.items() if node != node_id}

    def authenticate(self, domain: str, key: bytes) -> str:
        """Return the id of the node with this key, or "" if it is not linked. For `bus.net.zap`."""
        return self._ids.get(key, "")

    def role_of(self, node_id: str) -> Role | None:
        """Return the role of a linked node; None for a node that is not linked."""
        return self._roles.get(node_id)
