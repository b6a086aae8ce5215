"""Sockets and their handlers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from bus.net.sockets import open_socket
from bus.reactor import Reactor

Pair = tuple[zmq.Socket[bytes], zmq.Socket[bytes]]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    """Open two pairs of connected sockets."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made = []
    for name in ("one", "two"):
        receiver, sender = open_socket(context, zmq.PAIR), open_socket(context, zmq.PAIR)
        receiver.bind(f"inproc://{name}")
        sender.connect(f"inproc://{name}")
        made.append((receiver, sender))
    yield made
    context.destroy(linger=0)


def test_handlers_of_readable_sockets_are_found(pairs: list[Pair]) -> None:
    reactor, received = Reactor(), []
    for receiver, _ in pairs:
        reactor.register(receiver, lambda receiver=receiver: received.append(receiver.recv()))  # type: ignore[misc]
    assert list(reactor.poll(0)) == []
    pairs[1][1].send(b"x")
    for handler in reactor.poll(1000):
        handler()
    assert received == [b"x"]


def test_socket_unregistered_in_the_same_round_is_skipped(pairs: list[Pair]) -> None:
    reactor, called = Reactor(), []
    receivers = [receiver for receiver, _ in pairs]
    for receiver, other in zip(receivers, reversed(receivers), strict=True):

        def unregister_other(other: zmq.Socket[bytes] = other) -> None:
            called.append(other)
            reactor.unregister(other)

        reactor.register(receiver, unregister_other)
    for _, sender in pairs:
        sender.send(b"x")
    for handler in reactor.poll(1000):
        handler()
    assert len(called) == 1


def test_unknown_socket_cannot_be_unregistered(pairs: list[Pair]) -> None:
    with pytest.raises(KeyError):
        Reactor().unregister(pairs[0][0])
