"""Which nodes this node's hub is linked to, as one actor was told: facts and the hub's own list in, events out.

Facts may be lost, and the links of a hub end with it, without a fact. So the actor's client compares with the hub's
list from time to time and notes when its connection to the hub ended. The events of each node alternate between
`PeerUp` and `PeerDown`. No sockets here.
"""

from __future__ import annotations

from collections.abc import Sequence

from bus.messages import HubPeer, PeerDown, PeerUp

LinkEvent = PeerUp | PeerDown


class LinkWatch:
    """Methods return the events that the actor has to be told, in order."""

    def __init__(self) -> None:
        self._linked: dict[str, PeerUp] = {}
        self._heard: set[str] = set()  # the nodes of the facts that came since the hub was asked for its list

    def heard(self, fact: LinkEvent) -> list[LinkEvent]:
        """Handle a fact of the hub."""
        self._heard.add(fact.node_id)
        return self._up(fact) if isinstance(fact, PeerUp) else self._down(fact.node_id, fact.reason)

    def asked(self) -> None:
        """Note that the hub is asked for its list now."""
        self._heard.clear()

    def compare(self, peers: Sequence[HubPeer]) -> list[LinkEvent]:
        """Handle the hub's list. What facts said since it was asked for is newer, or will be right in the next list."""
        listed = {peer.node_id for peer in peers} | self._heard
        gone = [node_id for node_id in self._linked if node_id not in listed]
        ups = [PeerUp(p.node_id, p.name, p.endpoint, p.role) for p in peers if p.node_id not in self._heard]
        return [
            *(event for node_id in gone for event in self._down(node_id, "the hub of this node is not linked to it")),
            *(event for up in ups for event in self._up(up)),
        ]

    def hub_lost(self) -> list[LinkEvent]:
        """Note that the hub ended, and all links with it."""
        reason = "the hub of this node was started again"
        return [event for node_id in list(self._linked) for event in self._down(node_id, reason)]

    def name_of(self, node_id: str) -> str:
        """Return the name of a linked node, or the id of any other."""
        return self._linked[node_id].name if node_id in self._linked else node_id

    def _up(self, fact: PeerUp) -> list[LinkEvent]:
        if self._linked.get(fact.node_id) == fact:
            return []
        renewed = self._down(fact.node_id, "its link was made anew")
        self._linked[fact.node_id] = fact
        return [*renewed, fact]

    def _down(self, node_id: str, reason: str) -> list[LinkEvent]:
        up = self._linked.pop(node_id, None)
        return [PeerDown(node_id, reason, up.name)] if up else []
