"""Who sends over which connection, and which of its frames came last. Asked for every frame, so written for speed.

A ROUTER numbers its connections and never uses a number again, so what is learnt of one at its first frame stays true.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from contextlib import suppress

import zmq

from bus.dataplane.access import ClusterAccess, role_of
from bus.dataplane.frames import FrameError

MAX_SENDERS = 1024  # a sender that reconnects counts as a new one
SEQUENCES = 1 << 32
UNKNOWN_NODE = "?"  # no node's id, so nobody that is linked


class _Sender:
    __slots__ = ("node", "sequence")

    def __init__(self, node: str) -> None:
        self.node = node
        self.sequence = 0


class InboundConnections:
    """The connections of one inbox, by the routing ids that it gives them; at most `MAX_SENDERS`."""

    def __init__(self, reach: ClusterAccess | None) -> None:
        self._reach = reach
        self._known: OrderedDict[bytes, _Sender] = OrderedDict()

    def __contains__(self, source: bytes) -> bool:
        return source in self._known

    def meet(self, source: bytes, part: zmq.Frame) -> None:
        """The first frame of a connection came."""
        self._known[source] = _Sender(sender_of(part))
        while len(self._known) > MAX_SENDERS:
            self._known.popitem(last=False)

    def node(self, source: bytes) -> str:
        """Whose connection it is: a node's id, or "" for a process of this user. FrameError for one not linked."""
        sender = self._known[source].node
        if sender and role_of(self._reach, sender) is None:
            raise FrameError("foreign")
        return sender

    def follows(self, source: bytes, sequence: int) -> bool:
        """Whether a frame is the very next one of its connection. FrameError for one that was sent already."""
        sender = self._known[source]
        ahead = (sequence - sender.sequence) % SEQUENCES
        if not 0 < ahead < SEQUENCES // 2:
            raise FrameError("replayed")
        sender.sequence = sequence
        self._known.move_to_end(source)
        return ahead == 1


def sender_of(part: zmq.Frame) -> str:
    """The node whose key opened the connection that a part came over; "" for ipc and inproc, which have no key."""
    with suppress(zmq.ZMQError):
        return str(part.get("User-Id"))
    try:
        ipaddress.ip_address(str(part.get("Peer-Address")))
    except (zmq.ZMQError, ValueError):  # inproc has none, and that of ipc is no internet address
        return ""
    return UNKNOWN_NODE
