"""The outbound connections of a data plane: which endpoints are connected, and the next sequence number of each.

The blocking plane (`bus.dataplane.transport`) and the asyncio plane (`bus.dataplane.async_transport`) share this
table. It decides which connections stay open; opening and closing a socket is passed in, so it works with sockets of
either kind and knows neither.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Self, TypeVar

from cluster.roles import Role

MAX_CONNECTIONS = 64  # gateways come and go
SEQUENCES = 1 << 32  # a sequence number has 32 bits, and wraps around

SocketT = TypeVar("SocketT")


class NotLinked(ValueError):
    """An endpoint belongs to a node that this one has no link to; the message is one sentence."""

    @classmethod
    def to_node(cls, node_id: str) -> Self:
        """Return the error that names the node."""
        return cls(f"node {node_id} is not linked to this one; look at `exobus cluster ls`")


class Connection(Generic[SocketT]):
    """A connection that only sends. `node` is the id of the node that listens there, "" for ipc."""

    __slots__ = ("node", "sequence", "socket")

    def __init__(self, socket: SocketT, node: str) -> None:
        self.socket = socket
        self.node = node
        self.sequence = 0

    def next_sequence(self) -> int:
        """Return the number of the next frame; the first one is 1."""
        self.sequence = (self.sequence + 1) % SEQUENCES
        return self.sequence


class Connections(Generic[SocketT]):
    """At most MAX_CONNECTIONS connections by endpoint; the least recently used one is closed for a new one.

    `dial` opens a connection and returns its socket and the node at the other end; `close` closes a socket; `role_of`
    returns a node's role, None if it is not linked.
    """

    def __init__(
        self,
        dial: Callable[[str], tuple[SocketT, str]],
        close: Callable[[SocketT], object],
        role_of: Callable[[str], Role | None],
    ) -> None:
        self._dial = dial
        self._close = close
        self._role_of = role_of
        self._open: OrderedDict[str, Connection[SocketT]] = OrderedDict()  # cachetools would cost each frame more

    def __len__(self) -> int:
        return len(self._open)

    def get(self, endpoint: str) -> Connection[SocketT]:
        """Return the connection to an endpoint, dialled now if there is none, and mark it as used.

        Raises what `dial` raises, and NotLinked if the link to the node has gone since: the connection is then closed,
        and a link that comes back gets a new one.
        """
        connection = self._open.get(endpoint)
        if connection is None:
            return self._connect(endpoint)
        if connection.node and self._role_of(connection.node) is None:
            self.discard(endpoint)
            raise NotLinked.to_node(connection.node)
        self._open.move_to_end(endpoint)
        return connection

    def discard(self, endpoint: str) -> None:
        """Close the connection to an endpoint, if there is one: frames were lost, or cannot be sent."""
        if connection := self._open.pop(endpoint, None):
            self._close(connection.socket)

    def _connect(self, endpoint: str) -> Connection[SocketT]:
        connection = self._open[endpoint] = Connection(*self._dial(endpoint))
        if len(self._open) > MAX_CONNECTIONS:
            self.discard(next(iter(self._open)))
        return connection
