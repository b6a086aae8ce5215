"""The inbound connections of a data plane: which node sends over each, and which of its frames came last.

A ROUTER gives each connection a routing id and never uses one again, so what its first frame shows stays true.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from contextlib import suppress

import zmq

from bus.dataplane.access import Access
from bus.dataplane.connections import SEQUENCES
from bus.dataplane.frames import FrameError

MAX_INBOUND = 1024  # a sender that reconnects counts again
UNKNOWN_NODE = "?"  # is no node's id, so such a node is never linked


class InboundConnection:
    """The node at the other end, "" for a process of this user, and the sequence number of its last frame."""

    __slots__ = ("node", "sequence")

    def __init__(self, node: str) -> None:
        self.node = node
        self.sequence = 0


class InboundConnections:
    """The connections of one inbox, by the routing ids that it gives them; the MAX_INBOUND most recently used ones."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._known: OrderedDict[bytes, InboundConnection] = OrderedDict()  # asked for every frame, so no cachetools

    def __contains__(self, source: bytes) -> bool:
        return source in self._known

    def add(self, source: bytes, part: zmq.Frame) -> None:
        """Add a connection with `part` as its first message."""
        self._known[source] = InboundConnection(sender_of(part))
        if len(self._known) > MAX_INBOUND:
            self._known.popitem(last=False)

    def sender(self, source: bytes) -> str:
        """Return the node that sends over a connection, "" for a process of this user.

        Raises FrameError if the node is not linked, or not any more.
        """
        node = self._known[source].node
        if node and self._access.role_of(node) is None:
            raise FrameError("not linked")
        return node

    def is_next(self, source: bytes, sequence: int) -> bool:
        """Return whether a frame directly follows the last one of its connection.

        Raises FrameError if it came before.
        """
        connection = self._known[source]
        ahead = (sequence - connection.sequence) % SEQUENCES
        if not 0 < ahead < SEQUENCES // 2:
            raise FrameError("replayed")
        connection.sequence = sequence
        self._known.move_to_end(source)
        return ahead == 1


def sender_of(part: zmq.Frame) -> str:
    """Return the node that opened the connection of a message with its key; "" for ipc and inproc without keys."""
    with suppress(zmq.ZMQError):
        return str(part.get("User-Id"))
    try:
        ipaddress.ip_address(str(part.get("Peer-Address")))
    except (zmq.ZMQError, ValueError):  # inproc has no address, and that of ipc is no internet address
        return ""
    return UNKNOWN_NODE
