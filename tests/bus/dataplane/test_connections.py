"""`bus.dataplane.connections`: which connections stay open, and their sequence numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.dataplane import connections as module
from bus.dataplane.connections import SEQUENCES, Connections, NotLinked
from cluster.roles import Role


class Dialer:
    """Opens and closes numbers for sockets. The node at an endpoint has the endpoint's name; "ipc" has none."""

    def __init__(self) -> None:
        self.opened = 0
        self.closed: list[int] = []
        self.unlinked: set[str] = set()
        self.connections: Connections[int] = Connections(self.dial, self.closed.append, self.role_of)

    def dial(self, endpoint: str) -> tuple[int, str]:
        if endpoint in self.unlinked:
            raise NotLinked.to_node(endpoint)
        self.opened += 1
        return self.opened, "" if endpoint == "ipc" else endpoint

    def role_of(self, node: str) -> Role | None:
        return None if node in self.unlinked else Role.MEMBER


def test_endpoint_keeps_its_connection_and_numbers() -> None:
    dialer = Dialer()
    numbers = [dialer.connections.get(endpoint).next_sequence() for endpoint in ("a", "b", "a", "ipc", "a")]
    assert numbers == [1, 1, 2, 1, 3]
    assert dialer.opened == len(dialer.connections) == 3


def test_sequence_numbers_wrap_around() -> None:
    connection = Dialer().connections.get("a")
    connection.sequence = SEQUENCES - 2
    assert [connection.next_sequence() for _ in range(3)] == [SEQUENCES - 1, 0, 1]


def test_discarded_connection_is_closed_and_dialed_again() -> None:
    dialer = Dialer()
    dialer.connections.get("a").next_sequence()
    dialer.connections.discard("a")
    dialer.connections.discard("b")
    assert dialer.closed == [1]
    assert dialer.connections.get("a").next_sequence() == 1


def test_connection_of_an_unlinked_node_is_closed() -> None:
    dialer = Dialer()
    dialer.connections.get("a")
    dialer.connections.get("ipc")
    dialer.unlinked = {"a", ""}
    for _ in range(2):
        with pytest.raises(NotLinked, match="node a is not linked"):
            dialer.connections.get("a")
    assert dialer.closed == [1]
    assert dialer.connections.get("ipc").socket == 2, "a process of this user needs no link"
    dialer.unlinked = set()
    assert dialer.connections.get("a").socket == 3


@given(st.lists(st.integers(0, 9), max_size=60))
def test_least_recently_used_connection_is_closed(endpoints: list[int]) -> None:
    dialer, used = Dialer(), list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_CONNECTIONS", 4)
        for number in endpoints:
            endpoint = str(number)
            kept = endpoint in used[-4:]
            before = dialer.opened
            dialer.connections.get(endpoint)
            assert (dialer.opened == before) is kept
            used = [one for one in used if one != endpoint] + [endpoint]
    assert len(dialer.connections) == min(len(used), 4)
    assert len(dialer.closed) == dialer.opened - len(dialer.connections)
