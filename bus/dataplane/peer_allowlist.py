"""Whose data-plane connections a process takes: the nodes that its own hub is linked to. No sockets here.

The owner tells it of links as they come and go; the ZAP handler's thread and the data plane's only read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from bus.messages import HubPeer, PeerUp
from bus.net.endpoints import key_of, node_of
from cluster.roles import Role


class PeerAllowlist:
    """The linked nodes by key and by id, this node among them."""

    def __init__(self, own_key: bytes, own_id: str) -> None:
        self._ids = {own_key: own_id}
        self._roles = {own_id: Role.MEMBER}
        self._own_id = own_id
        self._missing: frozenset[str] = frozenset()

    def standing(self, peers: Iterable[HubPeer | PeerUp]) -> None:
        """These links stand."""
        for peer in peers:
            self._roles[peer.node_id] = peer.role
            self._ids[key_of(peer.endpoint)] = node_of(peer.endpoint)

    def seen(self, peers: Collection[HubPeer]) -> None:
        """A look at the hub: these links stand. Who is missing twice in a row is gone: word of it was lost.

        Once is not enough: a hub that was started again links anew, and meanwhile sessions go on.
        """
        self.standing(peers)
        missing = frozenset(self._roles.keys() - {peer.node_id for peer in peers} - {self._own_id})
        for node_id in missing & self._missing:
            self.gone(node_id)
        self._missing = missing

    def gone(self, node_id: str) -> None:
        """The link to a node is gone; what it has open is believed no more."""
        self._roles.pop(node_id, None)
        self._ids = {key: node for key, node in self._ids.items() if node != node_id}

    def allow(self, domain: str, key: bytes) -> str:
        """For `bus.net.zap`: the node id behind a key, or nothing."""
        return self._ids.get(key, "")

    def role_of(self, node_id: str) -> Role | None:
        """What a linked node may do; None for one that is not linked."""
        return self._roles.get(node_id)
