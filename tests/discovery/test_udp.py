"""Beacons over real UDP on loopback."""

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
from discovery.beacon import LONGEST, Beacon
from discovery.beacon_filter import WrongJoinCode
from discovery.udp import LOOPBACK, NoBroadcastError, UdpDiscovery, broadcast_of
from tests.support.beacons import FOREIGN, KEYS, ROTATED, beacon, datagram, forgeries, node_id
from tests.support.nodes import free_udp_port

WITHIN_S = 10.0
HOST = "127.0.0.1"
JOIN = f"tcp://{HOST}:1"


class Address(NamedTuple):
    """As psutil tells of an interface's address."""

    family: int
    address: str
    broadcast: str | None


@asynccontextmanager
async def node(
    port: int, number: int, *, keys: ClusterKeys = KEYS, host: str = HOST, silent: bool = False
) -> AsyncIterator[UdpDiscovery]:
    discovery = UdpDiscovery(host, port, keys)
    discovery.announce(None if silent else beacon(number, f"tcp://{host}:1"))
    await discovery.start()
    try:
        yield discovery
    finally:
        await discovery.stop()


@contextmanager
def stranger(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    """Somebody who sends what they like."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sends:
        sends.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sends.bind((host, 0))
        yield sends


async def heard(discovery: UdpDiscovery, wanted: Callable[[Beacon], bool]) -> Beacon:
    async with asyncio.timeout(WITHIN_S):
        while True:
            said = await discovery.heard()
            if isinstance(said, Beacon) and wanted(said):
                return said


def of(number: int) -> Callable[[Beacon], bool]:
    return lambda said: said.node_id == node_id(number)


def test_two_nodes_of_one_machine_hear_each_other() -> None:
    async def test() -> None:
        port = free_udp_port()
        async with node(port, 1) as one, node(port, 2, host="127.0.0.2") as two:
            said = await heard(one, of(2))
            assert msgspec.structs.replace(said, counter=1) == beacon(2, "tcp://127.0.0.2:1")
            assert (await heard(two, of(1))).join_endpoint == JOIN
            assert (await heard(one, of(1))).join_endpoint == JOIN

    asyncio.run(test())


def test_counters_rise_also_when_the_process_begins_anew() -> None:
    async def test() -> None:
        port = free_udp_port()
        async with node(port, 1, silent=True) as one:
            async with node(port, 2):
                first = await heard(one, of(2))
                second = await heard(one, of(2))
            goodbye = await heard(one, of(2))
            async with node(port, 2):
                fourth = await heard(one, of(2))
        counters = [said.counter for said in (first, second, goodbye, fourth)]
        assert counters == sorted(set(counters))
        assert goodbye.leaving
        assert not one.dropped

    asyncio.run(test())


def test_who_has_nothing_to_announce_listens_and_says_nothing() -> None:
    async def test() -> None:
        port = free_udp_port()
        async with node(port, 1) as one:
            async with node(port, 2, silent=True) as two:
                await heard(two, of(1))
            assert [(await heard(one, bool)).node_id for _ in range(3)] == [node_id(1)] * 3

    asyncio.run(test())


def test_what_is_announced_can_change() -> None:
    async def test() -> None:
        port = free_udp_port()
        async with node(port, 1) as one, node(port, 2) as two:
            await heard(one, of(2))
            two.announce(beacon(2, "tcp://127.0.0.1:9"))
            await heard(one, lambda said: said.join_endpoint == "tcp://127.0.0.1:9")

    asyncio.run(test())


def test_a_new_join_code_holds_for_both_ways() -> None:
    async def test() -> None:
        port = free_udp_port()
        async with node(port, 1) as one, node(port, 2, keys=ROTATED) as two:
            one.use(ROTATED)
            await heard(one, of(2))
            await heard(two, of(1))

    asyncio.run(test())


def test_nodes_with_another_code_for_the_same_cluster_tell_of_each_other() -> None:
    async def test() -> None:
        port = free_udp_port()
        async with node(port, 1) as one, node(port, 2, keys=ROTATED) as two, asyncio.timeout(WITHIN_S):
            for discovery in (one, two):
                while not isinstance(said := await discovery.heard(), WrongJoinCode):
                    pass
                assert said == WrongJoinCode("home", HOST)

    asyncio.run(test())


def test_what_is_no_beacon_is_counted_and_the_next_one_is_heard() -> None:
    garbage = (
        b"",
        b"{",
        b"exob",
        b"\xff" * 40,
        b"x" * (LONGEST + 1),
        b"x" * 5000,
        datagram(join_endpoint=JOIN)[:-1] + b"\0",
    )

    async def test() -> None:
        port = free_udp_port()
        async with node(port, 1) as one:
            with stranger() as sends:
                for data in garbage:
                    sends.sendto(data, (LOOPBACK, port))
                sends.sendto(datagram(5, JOIN, FOREIGN), (LOOPBACK, port))
                sends.sendto(datagram(6, "tcp://192.0.2.7:1"), (LOOPBACK, port))
                for _ in range(2):
                    sends.sendto(datagram(7, JOIN), (LOOPBACK, port))
                sends.sendto(datagram(8, JOIN), (LOOPBACK, port))
            await heard(one, of(8))
            assert one.dropped == {
                "size": 5, "magic": 1, "forged": 1, "another cluster": 1, "reflected": 1, "replayed": 1
            }  # fmt: skip

    asyncio.run(test())


def test_nodes_hear_each_other_through_five_thousand_forgeries_a_second() -> None:
    count, batch = 20_000, 250

    async def flood(port: int) -> None:
        begun, datagrams = time.monotonic(), list(forgeries(count))
        with stranger() as sends:
            sends.setblocking(False)
            for number in range(0, count, batch):
                for data in datagrams[number : number + batch]:
                    await asyncio.get_running_loop().sock_sendto(sends, data, (LOOPBACK, port))
                await asyncio.sleep(max(0.0, begun + (number + batch) / 5000 - time.monotonic()))

    async def test() -> None:
        port, process = free_udp_port(), psutil.Process(os.getpid())
        async with node(port, 1, silent=True) as one, node(port, 2):
            flooding = asyncio.create_task(flood(port))
            await heard(one, of(2))
            before = process.memory_info().rss
            while not flooding.done():
                await heard(one, of(2))
            assert process.memory_info().rss - before < 8 << 20
            assert sum(one.dropped.values()) > count / 10
            assert one._inbox.qsize() < 5

    asyncio.run(test())


def test_a_full_inbox_drops_what_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with node(free_udp_port(), 1, silent=True) as one:
            for number in range(8):
                one._take(datagram(number, JOIN), HOST)
            assert one.dropped == {"inbox full": 3}
            assert one._inbox.qsize() == 5

    monkeypatch.setattr(udp, "MAX_WAITING", 5)
    asyncio.run(test())


def test_the_receive_buffer_is_bounded() -> None:
    async def test() -> None:
        async with node(free_udp_port(), 1) as one:
            assert one._listener is not None
            assert one._listener.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= 2 * udp.RECEIVE_BYTES

    asyncio.run(test())


def test_a_port_that_cannot_be_had_is_one_sentence() -> None:
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
def test_beacons_go_out_on_the_hosts_own_interface_only(
    host: str, broadcast: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    interfaces(monkeypatch)
    assert broadcast_of(host) == broadcast


def test_without_a_broadcast_address_no_port_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        discovery = UdpDiscovery("100.64.0.2", free_udp_port(), KEYS)
        discovery.announce(beacon())
        with pytest.raises(NoBroadcastError, match=r"no beacons on 100\.64\.0\.2: .* --peer"):
            await discovery.start()
        assert discovery._listener is None
        await discovery.stop()

    interfaces(monkeypatch)
    asyncio.run(test())


def test_a_loopback_listener_hears_loopback_broadcasts_only() -> None:
    async def test() -> None:
        async with node(free_udp_port(), 1) as one:
            assert one._listener is not None
            assert one._listener.getsockname()[0] == LOOPBACK
            assert one._speaker is not None
            assert one._speaker.getsockname()[0] == HOST

    asyncio.run(test())
