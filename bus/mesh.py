"""Which hubs this hub is linked to, as a pure state machine: link events in, actions out. No sockets here.

A link stands when our dial is connected and the other hub has said hello on its own dial. A hub that restarts
says hello with a new incarnation: the old link is then down before the new one is up. A node that can be reached
at several addresses is linked at one of them; dials to the others are closed again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bus.messages import HubPeer, LinkHello, PeerDown, PeerUp


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
    """Introduce ourselves on the DEALER to this end point; `heard` is the hello that it answers, if any."""

    endpoint: str
    heard: LinkHello | None = None


@dataclass(frozen=True, slots=True)
class Publish:
    """Tell the own node."""

    fact: PeerUp | PeerDown


Action = Dial | Close | SayHello | Publish


@dataclass(slots=True)
class _Dialled:
    connected: bool = False
    peer: LinkHello | None = None

    @property
    def stands(self) -> bool:
        return self.connected and self.peer is not None


@dataclass(slots=True)
class Mesh:
    """Dials by end point. `node_id` is our own; a hello from ourselves ends that dial."""

    node_id: str
    cluster: str = ""
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
        if dial.peer is not None and self.endpoint_of(dial.peer.node_id) is not None:
            return self._close(endpoint, "another link to it stands")
        dial.connected = True
        return [SayHello(endpoint, dial.peer), *_up(endpoint, dial)]

    def refusal(self, hello: LinkHello) -> str:
        """Why there can be no link to the hub that said hello; empty where there can."""
        if hello.node_id == self.node_id:
            return "it is this node"
        return "" if hello.cluster == self.cluster else f"it belongs to cluster {hello.cluster!r}"

    def hello(self, hello: LinkHello) -> list[Action]:
        """The other hub introduced itself, on its dial to us."""
        if reason := self.refusal(hello):
            own = hello.node_id == self.node_id
            return self._close(hello.dialled if own else hello.answers or hello.endpoint, reason)
        if any(self._life(endpoint) > hello.incarnation for endpoint in self._of(hello.node_id)):
            return []  # a late word from before its restart
        actions = self._retire(hello)
        standing = self.endpoint_of(hello.node_id)
        if standing is not None:
            return [*actions, *self._heard_again(standing, hello)]
        endpoint = hello.answers if hello.answers in self._dials else hello.endpoint
        dial = self._dials.setdefault(endpoint, new := _Dialled())
        dial.peer = hello
        if dial is new:
            return [*actions, Dial(endpoint)]
        answer: list[Action] = [SayHello(endpoint, hello)] if dial.connected and not hello.heard else []
        return [*actions, *answer, *_up(endpoint, dial)]

    def disconnected(self, endpoint: str, reason: str) -> list[Action]:
        """Our dial broke, could not be made, or was refused. One that stood is tried once more.

        The other hub may not have noticed anything, and then nobody else would ever dial.
        """
        dial = self._dials.get(endpoint)
        again = dial is not None and dial.stands
        actions = self._close(endpoint, reason)
        return [*actions, *self.dial(endpoint)] if again else actions

    def left(self, node_id: str) -> list[Action]:
        """The other hub said good-bye."""
        return [action for endpoint in self._of(node_id) for action in self._close(endpoint, "it left")]

    def endpoint_of(self, node_id: str) -> str | None:
        """The end point of a standing link to a node."""
        return next((endpoint for endpoint in self._of(node_id) if self._dials[endpoint].stands), None)

    def standing(self) -> tuple[HubPeer, ...]:
        """All links that stand."""
        return tuple(
            HubPeer(dial.peer.node_id, dial.peer.name, endpoint)
            for endpoint, dial in self._dials.items()
            if dial.peer is not None and dial.connected
        )

    def _heard_again(self, standing: str, hello: LinkHello) -> list[Action]:
        """A hello from a node that we are linked to: our other dial to it is one too many."""
        spare = self._close(hello.answers, "another link to it stands") if hello.answers != standing else []
        return spare if hello.heard else [*spare, SayHello(standing, hello)]

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
    return [Publish(PeerUp(dial.peer.node_id, dial.peer.name, endpoint))]
