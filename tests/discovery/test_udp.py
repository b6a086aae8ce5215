"""`discovery.udp`: beacons over real UDP sockets on loopback."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple

import msgspec
import psutil
import pytest

from cluster.join_code import ClusterKeys
from discovery import udp
from discovery.beacon import MAX_BYTES, Beacon
from discovery.beacon_filter import WrongJoinCode
from discovery.udp import LOOPBACK, NoBroadcastError, UdpDiscovery, broadcast_of
from tests.support.network.beacons import (
    FOREIGN,
    KEYS,
    ROTATED,
    WITHIN_S,
    beacon,
    datagram,
    forgeries,
    next_beacon,
    node_id,
)
from tests.support.nodes import free_udp_port

HOST = "127.0.0.1"
JOIN = f"tcp://{HOST}:1"


class Address(NamedTuple):
    """An address of an interface, as psutil returns it."""

    family: int
    address: str
    broadcast: str | None


@asynccontextmanager
async def node(
    port: int, number: int, *, keys: ClusterKeys = KEYS, host: str = HOST, announced: bool = True
) -> AsyncIterator[UdpDiscovery]:
    discovery = UdpDiscovery(host, port, keys)
    discovery.announce(beacon(number, f"tcp://{host}:1") if announced else None)
    await discovery.start()
    try:
        yield discovery
    finally:
        await discovery.stop()


@contextmanager
def raw_sender(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    """Open a socket that can send any datagram to the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.bind((host, 0))
        yield sender


def of(number: int) -> Callable[[Beacon], bool]:
    return lambda found: found.node_id == node_id(number)


def test_two_nodes_of_one_machine_receive_each_other() -> None:
    async def test() -> None:
        port = free_udp_port()
        async with node(port, 1) as one, node(port, 2, host="127.0.0.2") as two:
            found = await next_beacon(one, of(2))
            assert msgspec.structs.replace(found, counter=1) == beacon(2, "tcp://127.0.0.2:1")
            assert (await next_beacon(two, of(1))).join_endpoint == JOIN
            assert (await next_beacon(one, of(1))).join_endpoint == JOIN

    asyncio.run(test())


def test_counter_rises_over_restarts_of_the_process() -> None:
    async def test() -> None:
        port = free_udp_port()
        async with node(port, 1, announced=False) as one:
            async with node(port, 2):
                first = await next_beacon(one, of(2))
                second = await next_beacon(one, of(2))
            leaving = await next_beacon(one, of(2))
            async with node(port, 2):
                fourth = await next_beacon(one, of(2))
        counters = [found.counter for found in (first, second, leaving, fourth)]
        assert counters == sorted(set(counters))
        assert leaving.leaving
        assert not one.dropped

    asyncio.run(test())


def test_node_without_a_beacon_only_listens() -> None:
    async def test() -> None:
        port = free_udp_port()
        async with node(port, 1) as one:
            async with node(port, 2, announced=False) as two:
                await next_beacon(two, of(1))
            assert [(await next_beacon(one, bool)).node_id for _ in range(3)] == [node_id(1)] * 3

    asyncio.run(test())


def test_announced_beacon_can_change() -> None:
    async def test() -> None:
        port = free_udp_port()
        async with node(port, 1) as one, node(port, 2) as two:
            await next_beacon(one, of(2))
            two.announce(beacon(2, "tcp://127.0.0.1:9"))
            await next_beacon(one, lambda found: found.join_endpoint == "tcp://127.0.0.1:9")

    asyncio.run(test())


def test_new_join_code_applies_to_both_directions() -> None:
    async def test() -> None:
        port = free_udp_port()
        async with node(port, 1) as one, node(port, 2, keys=ROTATED) as two:
            one.use_keys(ROTATED)
            await next_beacon(one, of(2))
            await next_beacon(two, of(1))

    asyncio.run(test())


def test_nodes_with_different_codes_report_each_other() -> None:
    async def test() -> None:
        port = free_udp_port()
        async with node(port, 1) as one, node(port, 2, keys=ROTATED) as two, asyncio.timeout(WITHIN_S):
            for discovery in (one, two):
                while not isinstance(found := await discovery.receive(), WrongJoinCode):
                    pass
                assert found == WrongJoinCode("home", HOST)

    asyncio.run(test())


def test_foreign_datagrams_are_counted_and_stop_nothing() -> None:
    garbage = (
        b"",
        b"{",
        b"exob",
        b"\xff" * 40,
        b"x" * (MAX_BYTES + 1),
        b"x" * 5000,
        datagram(join_endpoint=JOIN)[:-1] + b"\0",
    )

    async def test() -> None:
        port = free_udp_port()
        async with node(port, 1) as one:
            with raw_sender() as sender:
                for data in garbage:
                    sender.sendto(data, (LOOPBACK, port))
                sender.sendto(datagram(5, JOIN, FOREIGN), (LOOPBACK, port))
                sender.sendto(datagram(6, "tcp://192.0.2.7:1"), (LOOPBACK, port))
                for _ in range(2):
                    sender.sendto(datagram(7, JOIN), (LOOPBACK, port))
                sender.sendto(datagram(8, JOIN), (LOOPBACK, port))
            await next_beacon(one, of(8))
            assert one.dropped == {
                "size": 5, "magic": 1, "forged": 1, "another cluster": 1, "reflected": 1, "replayed": 1
            }  # fmt: skip

    asyncio.run(test())


def test_beacons_arrive_through_five_thousand_forgeries_a_second() -> None:
    count, batch = 20_000, 250

    async def flood(port: int) -> None:
        start, datagrams = time.monotonic(), list(forgeries(count))
        with raw_sender() as sender:
            sender.setblocking(False)
            for number in range(0, count, batch):
                for data in datagrams[number : number + batch]:
                    await asyncio.get_running_loop().sock_sendto(sender, data, (LOOPBACK, port))
                await asyncio.sleep(max(0.0, start + (number + batch) / 5000 - time.monotonic()))

    async def test() -> None:
        port, process = free_udp_port(), psutil.Process(os.getpid())
        async with node(port, 1, announced=False) as one, node(port, 2):
            flooding = asyncio.create_task(flood(port))
            await next_beacon(one, of(2))
            before = process.memory_info().rss
            while not flooding.done():
                await next_beacon(one, of(2))
            assert process.memory_info().rss - before < 8 << 20
            assert sum(one.dropped.values()) > count / 10
            assert one._inbox.qsize() < 5

    asyncio.run(test())


def test_full_inbox_drops_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with node(free_udp_port(), 1, announced=False) as one:
            for number in range(8):
                one._take(datagram(number, JOIN), HOST)
            assert one.dropped == {"inbox full": 3}
            assert one._inbox.qsize() == 5

    monkeypatch.setattr(udp, "MAX_WAITING", 5)
    asyncio.run(test())


def test_receive_buffer_is_bounded() -> None:
    async def test() -> None:
        async with node(free_udp_port(), 1) as one:
            assert one._receiver is not None
            assert one._receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= 2 * udp.RECEIVE_BYTES

    asyncio.run(test())


def test_unavailable_port_is_one_sentence() -> None:
    async def test() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind((LOOPBACK, 0))
            discovery = UdpDiscovery(HOST, taken.getsockname()[1], KEYS)
            with pytest.raises(
                OSError, match=r"cannot listen for beacons on UDP port \d+ \(Address already in use\); "
            ):
                await discovery.start()
            await discovery.stop()

    asyncio.run(test())


# -- which interface


def interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "lo": [Address(socket.AF_INET, "127.0.0.1", None)],
        "eth0": [Address(socket.AF_INET6, "fd00::2", None), Address(socket.AF_INET, "192.168.1.11", "192.168.1.255")],
        "wlan0": [Address(socket.AF_INET, "10.0.0.5", "10.0.255.255")],
        "tailnet": [Address(socket.AF_INET, "100.64.0.2", None)],
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)


@pytest.mark.parametrize(
    ("host", "broadcast"),
    [
        ("127.0.0.1", LOOPBACK),
        ("127.0.0.9", LOOPBACK),
        ("192.168.1.11", "192.168.1.255"),
        ("10.0.0.5", "10.0.255.255"),
        ("100.64.0.2", ""),
        ("192.168.1.12", ""),
        ("fd00::2", ""),
        ("::1", ""),
        ("0.0.0.0", ""),
    ],
)
def test_beacons_leave_by_the_hosts_interface(host: str, broadcast: str, monkeypatch: pytest.MonkeyPatch) -> None:
    interfaces(monkeypatch)
    assert broadcast_of(host) == broadcast


def test_no_socket_is_opened_without_a_broadcast_address(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        discovery = UdpDiscovery("100.64.0.2", free_udp_port(), KEYS)
        discovery.announce(beacon())
        with pytest.raises(NoBroadcastError, match=r"no beacons on 100\.64\.0\.2: .* --peer"):
            await discovery.start()
        assert discovery._receiver is None
        await discovery.stop()

    interfaces(monkeypatch)
    asyncio.run(test())


def test_loopback_sockets_are_bound_to_loopback() -> None:
    async def test() -> None:
        async with node(free_udp_port(), 1) as one:
            assert one._receiver is not None
            assert one._receiver.getsockname()[0] == LOOPBACK
            assert one._sender is not None
            assert one._sender.getsockname()[0] == HOST

    asyncio.run(test())
