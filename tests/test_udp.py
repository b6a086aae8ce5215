"""Beacons over real UDP on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest

from cluster.membership import Beacon
from discovery.udp import MAX_BYTES, UdpDiscovery, broadcast_addresses, reachable

WITHIN_S = 10.0
GARBAGE = (b"", b"{", b"[]", b'{"cluster": 1}', b"\xff" * 40, b'{"cluster":"\xff"}', b"x" * (MAX_BYTES + 1))


def beacon(node_id: str) -> Beacon:
    return Beacon("home", 1, node_id, node_id.upper(), 1, f"tcp://127.0.0.1:{len(node_id)}")


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        port: int = udp.getsockname()[1]
        return port


@asynccontextmanager
async def node(port: int, node_id: str) -> AsyncIterator[UdpDiscovery]:
    discovery = UdpDiscovery(port, loopback=True)
    await discovery.start(beacon(node_id))
    try:
        yield discovery
    finally:
        await discovery.stop()


async def heard(discovery: UdpDiscovery, wanted: Callable[[Beacon], bool]) -> Beacon:
    async with asyncio.timeout(WITHIN_S):
        while not wanted(said := await discovery.heard()):
            pass
        return said


def test_two_nodes_of_one_machine_hear_each_other() -> None:
    async def test() -> None:
        port = free_port()
        async with node(port, "one") as one, node(port, "second") as second:
            assert await heard(one, lambda said: said.node_id == "second") == beacon("second")
            assert await heard(second, lambda said: said.node_id == "one") == beacon("one")
            assert await heard(one, lambda said: said.node_id == "one") == beacon("one")

    asyncio.run(test())


def test_a_goodbye_is_heard() -> None:
    async def test() -> None:
        port = free_port()
        async with node(port, "one") as one:
            async with node(port, "second"):
                await heard(one, lambda said: said.node_id == "second")
            assert (await heard(one, lambda said: said.leaving)).node_id == "second"

    asyncio.run(test())


def test_what_is_no_beacon_is_counted_and_the_next_one_is_heard() -> None:
    async def test() -> None:
        port = free_port()
        async with node(port, "one") as one:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                for garbage in GARBAGE:
                    udp.sendto(garbage, ("127.255.255.255", port))
                udp.sendto(msgspec.json.encode(beacon("last")), ("127.255.255.255", port))
            await heard(one, lambda said: said.node_id == "last")
            assert one.dropped == len(GARBAGE)

    asyncio.run(test())


def test_a_port_that_cannot_be_had_is_one_sentence() -> None:
    async def test() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.255.255.255", 0))
            discovery = UdpDiscovery(taken.getsockname()[1], loopback=True)
            with pytest.raises(
                OSError, match=r"cannot listen for beacons on UDP port \d+ \(Address already in use\); "
            ):
                await discovery.start(beacon("one"))
            await discovery.stop()

    asyncio.run(test())


def test_loopback_stays_on_this_machine() -> None:
    assert broadcast_addresses(loopback=True) == ["127.255.255.255"]
    assert broadcast_addresses(loopback=False)[0] == "127.255.255.255"


def test_a_hub_on_every_address_is_dialled_where_its_beacon_came_from() -> None:
    everywhere = msgspec.structs.replace(beacon("one"), endpoint="tcp://0.0.0.0:7")
    assert reachable(everywhere, "10.0.0.9").endpoint == "tcp://10.0.0.9:7"
    assert reachable(beacon("one"), "10.0.0.9") == beacon("one")
