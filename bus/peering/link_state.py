"""Which hubs this hub is linked to, as a pure state machine: link events in, actions out. No sockets here.

A link stands when our dial is connected and the other hub has said hello on its own dial. A hub that restarts
says hello with a new incarnation: the old link is then down before the new one is up. End points name their node's
key, and each life of a node has one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bus.messages import HubPeer, LinkHello, PeerDown, PeerUp
from cluster.roles import Role


@dataclass(frozen=True, slots=True)
class Dial:
    """Open a DEALER to this end point."""

    endpoint: str


@dataclass(frozen=True, slots=True)
class Close:
    """Close the DEALER to this end point."""

    endpoint: str


@dataclass(frozen=True, slots=True)
class SayHello:
    """Introduce ourselves on the DEALER to this end point; `heard` tells that its hello came."""

    endpoint: str
    heard: bool = False


@dataclass(frozen=True, slots=True)
class Publish:
    """Tell the own node."""

    fact: PeerUp | PeerDown


Action = Dial | Close | SayHello | Publish


@dataclass(slots=True)
class _Dialled:
    connected: bool = False
    peer: LinkHello | None = None
    role: Role = Role.MEMBER

    @property
    def stands(self) -> bool:
        return self.connected and self.peer is not None


@dataclass(slots=True)
class LinkState:
    """Dials by end point. `node_id` is our own."""

    node_id: str
    _dials: dict[str, _Dialled] = field(default_factory=dict)

    def dial(self, endpoint: str) -> list[Action]:
        """Someone wants a link to `endpoint`. A dial that nobody answered yet says hello again."""
        dial = self._dials.get(endpoint)
        if dial is None:
            self._dials[endpoint] = _Dialled()
            return [Dial(endpoint)]
        return [SayHello(endpoint)] if dial.connected and not dial.stands else []

    def connected(self, endpoint: str) -> list[Action]:
        """Our dial got through."""
        dial = self._dials.get(endpoint)
        if dial is None or dial.connected:
            return []
        dial.connected = True
        return [SayHello(endpoint, dial.peer is not None), *_up(endpoint, dial)]

    def hello(self, hello: LinkHello, role: Role) -> list[Action]:
        """The other hub introduced itself, on its dial to us."""
        if any(self._life(endpoint) > hello.incarnation for endpoint in self._of(hello.node_id)):
            return []  # a late word from before its restart
        actions = self._retire(hello)
        dial = self._dials.setdefault(hello.endpoint, new := _Dialled())
        stood, dial.peer, dial.role = dial.stands, hello, role
        if dial is new:
            return [*actions, Dial(hello.endpoint)]
        answer: list[Action] = [SayHello(hello.endpoint, heard=True)] if dial.connected and not hello.heard else []
        return [*actions, *answer, *([] if stood else _up(hello.endpoint, dial))]

    def disconnected(self, endpoint: str, reason: str) -> list[Action]:
        """Our dial broke, could not be made, or was refused. One that stood is tried once more.

        The other hub may not have noticed anything, and then nobody else would ever dial.
        """
        dial = self._dials.get(endpoint)
        again = dial is not None and dial.stands
        actions = self._close(endpoint, reason)
        return [*actions, *self.dial(endpoint)] if again else actions

    def left(self, node_id: str, reason: str = "it left") -> list[Action]:
        """The other hub said good-bye, or is not let in any more."""
        return [action for endpoint in self._of(node_id) for action in self._close(endpoint, reason)]

    def endpoint_of(self, node_id: str) -> str | None:
        """The end point of a standing link to a node."""
        return next((endpoint for endpoint in self._of(node_id) if self._dials[endpoint].stands), None)

    def life_of(self, node_id: str) -> int | None:
        """The incarnation of a node to which a link stands."""
        endpoint = self.endpoint_of(node_id)
        return None if endpoint is None else self._life(endpoint)

    def standing(self) -> tuple[HubPeer, ...]:
        """All links that stand."""
        return tuple(
            HubPeer(dial.peer.node_id, dial.peer.name, endpoint, dial.role, dial.peer.join_endpoint)
            for endpoint, dial in self._dials.items()
            if dial.peer is not None and dial.connected
        )

    def _of(self, node_id: str) -> list[str]:
        return [e for e, dial in self._dials.items() if dial.peer is not None and dial.peer.node_id == node_id]

    def _retire(self, hello: LinkHello) -> list[Action]:
        """Close what belongs to an earlier life of the same node."""
        stale = [e for e in self._of(hello.node_id) if self._life(e) != hello.incarnation]
        return [action for e in stale for action in self._close(e, "it restarted")]

    def _life(self, endpoint: str) -> int:
        peer = self._dials[endpoint].peer
        return peer.incarnation if peer else 0

    def _close(self, endpoint: str, reason: str) -> list[Action]:
        dial = self._dials.pop(endpoint, None)
        if dial is None:
            return []
        if not dial.stands or dial.peer is None:
            return [Close(endpoint)]
        return [Close(endpoint), Publish(PeerDown(dial.peer.node_id, reason))]


def _up(endpoint: str, dial: _Dialled) -> list[Action]:
    if not dial.stands or dial.peer is None:
        return []
    return [Publish(PeerUp(dial.peer.node_id, dial.peer.name, endpoint, dial.role))]
