"""Nodes and transports for tests of the data plane, without hubs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import msgspec
import zmq

from bus.dataplane.access import LOCAL, Access, ClusterAccess
from bus.dataplane.peer_allowlist import PeerAllowlist
from bus.dataplane.transport import Received, Transport
from bus.messages import HubPeer
from bus.net.endpoints import with_key
from bus.net.keys import KeyPair, key_pair_of, new_key_pair
from bus.net.sockets import connect, open_socket
from cluster.roles import Role
from tests.support.bus import WITHIN_S

HOST = "127.0.0.1"


def new_access(pair: KeyPair, *linked: KeyPair, host: str = HOST) -> ClusterAccess:
    """Return the access of a node to these others, which are members."""
    allowlist = PeerAllowlist(pair.public, pair.node_id)
    allowlist.add(peer(other) for other in linked)
    return ClusterAccess(host, pair, allowlist)


def peer(pair: KeyPair, role: Role = Role.MEMBER) -> HubPeer:
    """Return a node as the hub that is linked to it describes it."""
    return HubPeer(pair.node_id, pair.node_id, with_key("tcp://127.0.0.1:1", pair.public), role)


def linked_nodes(count: int) -> list[ClusterAccess]:
    """Return the accesses of so many nodes that are all linked."""
    pairs = [new_key_pair() for _ in range(count)]
    return [new_access(pair, *pairs) for pair in pairs]


class Node(msgspec.Struct, frozen=True):
    """A node for a process of its own: its secret key, and the public keys of all nodes that it is linked to."""

    secret: str
    linked: tuple[str, ...]
    plain: bool = False  # without keys

    @property
    def pair(self) -> KeyPair:
        """Its own keys."""
        return key_pair_of(bytes.fromhex(self.secret))

    def access(self) -> ClusterAccess:
        """Return its access to the others."""
        return new_access(self.pair, *(KeyPair(bytes.fromhex(public), b"") for public in self.linked))


def new_nodes(count: int, *, plain: bool = False) -> list[Node]:
    """Return so many nodes that are all linked."""
    pairs = [new_key_pair() for _ in range(count)]
    linked = tuple(pair.public.hex() for pair in pairs)
    return [Node(pair.secret.hex(), linked, plain) for pair in pairs]


@contextmanager
def without_keys() -> Iterator[None]:
    """Have new tcp sockets use no CURVE and accept every sender during the block.

    This is to measure the cost of keys. Nothing in the product can do this.
    """
    with (
        patch("bus.net.sockets._guard", lambda socket, guard: None),
        patch("bus.net.sockets._identify", lambda socket, endpoint, own: None),
        patch("bus.dataplane.inbound_connections.sender_of", lambda part: ""),
    ):
        yield


def tcp(endpoints: Sequence[str]) -> str:
    """Return the endpoint between machines."""
    return next(endpoint for endpoint in endpoints if endpoint.startswith("tcp://"))


def only_tcp(endpoints: Sequence[str]) -> tuple[str, ...]:
    """Return the endpoints that another machine can reach."""
    return (tcp(endpoints),)


@contextmanager
def raw_dealer(pair: KeyPair, endpoint: str) -> Iterator[zmq.Socket[bytes]]:
    """Connect a bare DEALER with a node's key."""
    with zmq.Context() as context, open_socket(context, zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 2000)
        dealer.setsockopt(zmq.SNDTIMEO, 2000)
        connect(dealer, endpoint, pair)
        yield dealer


@contextmanager
def open_transport(folder: Path, name: str, access: Access = LOCAL) -> Iterator[Transport]:
    """Open a transport during the block."""
    transport = Transport(folder, name, access)
    try:
        yield transport
    finally:
        transport.close()


def next_frame(receiver: Transport) -> Received:
    """Return the next frame that the transport accepts, with its payload and its sender."""
    deadline = time.monotonic() + WITHIN_S
    while (received := receiver.receive(100)) is None:
        assert time.monotonic() < deadline, f"no frame came: {receiver.dropped}"
    return received
