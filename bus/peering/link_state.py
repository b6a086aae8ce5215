"""To which hubs a hub is linked: a pure state machine that turns events into actions.

A link is up when our own connection is established and the other hub has sent its hello over a connection of its own.
A hub that restarts sends a hello with a new incarnation: the old link goes down before the new one is up. A hello with
another connection number says that the connection of the other hub ended, and what was on it is lost: the link goes
down and up, so that it breaks on both sides or on neither. An endpoint contains its node's key and port, so it names
one node.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bus.messages import HubPeer, LinkHello, PeerDown, PeerUp
from cluster.roles import Role


@dataclass(frozen=True, slots=True)
class Dial:
    """Open a DEALER to this endpoint."""

    endpoint: str


@dataclass(frozen=True, slots=True)
class Close:
    """Close the DEALER to this endpoint."""

    endpoint: str


@dataclass(frozen=True, slots=True)
class SendHello:
    """Send a hello on the DEALER to this endpoint; `received` says that the other hub's hello came."""

    endpoint: str
    received: bool = False


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish a fact on this node."""

    fact: PeerUp | PeerDown


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Send the node the facts of these topics from now on, and no others."""

    node_id: str
    topics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """Forget the topics of the node and the sequence numbers of its messages."""

    node_id: str


Action = Dial | Close | SendHello | Publish | Subscribe | Forget


@dataclass(slots=True)
class _Link:
    connected: bool = False
    hello: LinkHello | None = None
    role: Role = Role.MEMBER

    @property
    def is_up(self) -> bool:
        return self.connected and self.hello is not None


@dataclass(slots=True)
class LinkState:
    """The links of one hub, by endpoint. Methods that take an event return the actions that follow from it."""

    _links: dict[str, _Link] = field(default_factory=dict)

    def dial(self, endpoint: str) -> list[Action]:
        """Start a link, or send the hello again if the other hub has not answered it."""
        link = self._links.get(endpoint)
        if link is None:
            self._links[endpoint] = _Link()
            return [Dial(endpoint)]
        return [SendHello(endpoint)] if link.connected and not link.is_up else []

    def connected(self, endpoint: str) -> list[Action]:
        """Note that our connection is established."""
        link = self._links.get(endpoint)
        if link is None or link.connected:
            return []
        link.connected = True
        return [SendHello(endpoint, link.hello is not None), *_up(endpoint, link)]

    def hello(self, hello: LinkHello, role: Role) -> list[Action]:
        """Handle the hello that the hub of a node with this role sent over its connection to us."""
        known = self._endpoints_of(hello.node_id)
        if any(_number(self._links[endpoint].hello) > _number(hello) for endpoint in known):
            return []  # it was sent before the node restarted, or over a connection that has ended
        stale = [endpoint for endpoint in known if self._incarnation(endpoint) != hello.incarnation]
        actions = [action for endpoint in stale for action in self._close(endpoint, "it restarted")]
        link = self._links.setdefault(hello.endpoint, new := _Link())
        was_up = link.is_up
        if was_up and _number(link.hello) != _number(hello):
            # The numbers of its messages go on rising, so they are not forgotten: what still comes from the old
            # connection must not count as newer than this hello.
            actions.append(_down(hello, "its connection broke"))
            was_up = False
        link.hello, link.role = hello, role
        actions.append(Subscribe(hello.node_id, hello.subscriptions))
        if link is new:
            return [*actions, Dial(hello.endpoint)]
        if link.connected and not hello.hello_received:
            actions.append(SendHello(hello.endpoint, received=True))
        return actions if was_up else [*actions, *_up(hello.endpoint, link)]

    def disconnected(self, endpoint: str, reason: str) -> list[Action]:
        """Note that our connection broke, was refused, or could not be made. A link that was up is tried once more.

        The other hub may not have noticed anything, and then neither of the two would ever connect again.
        """
        link = self._links.get(endpoint)
        again = link is not None and link.is_up
        actions = self._close(endpoint, reason)
        return [*actions, *self.dial(endpoint)] if again else actions

    def left(self, node_id: str, reason: str = "it left") -> list[Action]:
        """End the links to a node that sent `link.bye` or may not be linked any more."""
        return [action for endpoint in self._endpoints_of(node_id) for action in self._close(endpoint, reason)]

    def endpoint_of(self, node_id: str) -> str | None:
        """Return the endpoint of a node to which a link is up, else None."""
        return next((endpoint for endpoint in self._endpoints_of(node_id) if self._links[endpoint].is_up), None)

    def incarnation_of(self, node_id: str) -> int | None:
        """Return the incarnation of a node to which a link is up, else None."""
        endpoint = self.endpoint_of(node_id)
        return None if endpoint is None else self._incarnation(endpoint)

    def peers(self) -> tuple[HubPeer, ...]:
        """Return the hubs to which a link is up."""
        return tuple(
            HubPeer(link.hello.node_id, link.hello.name, endpoint, link.role, link.hello.join_endpoint)
            for endpoint, link in self._links.items()
            if link.hello is not None and link.connected
        )

    def _endpoints_of(self, node_id: str) -> list[str]:
        return [e for e, link in self._links.items() if link.hello is not None and link.hello.node_id == node_id]

    def _incarnation(self, endpoint: str) -> int:
        hello = self._links[endpoint].hello
        return hello.incarnation if hello else 0

    def _close(self, endpoint: str, reason: str) -> list[Action]:
        link = self._links.pop(endpoint, None)
        if link is None:
            return []
        if link.hello is None:
            return [Close(endpoint)]
        closed: list[Action] = [Close(endpoint), Forget(link.hello.node_id)]
        return [*closed, _down(link.hello, reason)] if link.connected else closed


def _number(hello: LinkHello | None) -> tuple[int, int]:
    return (hello.incarnation, hello.connection) if hello else (0, 0)


def _down(hello: LinkHello, reason: str) -> Publish:
    return Publish(PeerDown(hello.node_id, reason, hello.name))


def _up(endpoint: str, link: _Link) -> list[Action]:
    if link.hello is None or not link.connected:
        return []
    return [Publish(PeerUp(link.hello.node_id, link.hello.name, endpoint, link.role))]
