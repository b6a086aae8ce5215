"""Beacons over UDP broadcast, once a second, on one interface: that of the address where other nodes reach this one.

Nodes that are reached on loopback only also beacon on loopback only. Several nodes of one machine share the port.
What is believed of what comes in is `discovery.beacon_filter`'s to say.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections import Counter
from contextlib import suppress

import msgspec
import psutil

from cluster.join_code import ClusterKeys
from discovery.beacon import LONGEST, Beacon, seal
from discovery.beacon_filter import BeaconFilter, WrongJoinCode
from discovery.discovery import Discovery

EVERY_S = 1.0
MAX_WAITING = 256
RECEIVE_BYTES = 256 << 10
LOOPBACK = "127.255.255.255"  # reaches every socket of this machine that listens on the port
_AT_ONCE = 64  # datagrams read before other tasks of the loop get their turn


class NoBroadcastError(OSError):
    """There is no interface to beacon on; the message is one sentence with the next step."""


class UdpDiscovery(Discovery):
    """Announces and hears beacons on `port` of the interface that has the IPv4 address `host`."""

    def __init__(self, host: str, port: int, keys: ClusterKeys) -> None:
        self._host, self._port = host, port
        self._keys = keys
        self._reception = BeaconFilter(keys)
        self._inbox: asyncio.Queue[Beacon | WrongJoinCode] = asyncio.Queue(MAX_WAITING)
        self._own: Beacon | None = None
        self._counter = 0
        self._broadcast = ""
        self._speaker: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._announcing: asyncio.Task[None] | None = None

    @property
    def dropped(self) -> Counter[str]:
        """See the base class."""
        return self._reception.dropped

    async def start(self) -> None:
        """See the base class. Raises NoBroadcastError for an address whose interface has no IPv4 broadcast."""
        self._broadcast = broadcast_of(self._host)
        if not self._broadcast:
            raise NoBroadcastError(f"no beacons on {self._host}: its network has no broadcast; name nodes with --peer")
        try:
            self._speaker = _speaker(self._host)
            self._listener = _listener(self._broadcast, self._port)
        except OSError as error:
            raise OSError(
                f"cannot listen for beacons on UDP port {self._port} ({error.strerror}); pass --discovery-port"
            ) from None
        asyncio.get_running_loop().add_reader(self._listener, self._read)
        self._announcing = asyncio.create_task(self._announce())

    def announce(self, own: Beacon | None) -> None:
        """See the base class. The first is heard at once."""
        self._own = own
        if self._speaker:
            self._send()

    def use(self, keys: ClusterKeys) -> None:
        """See the base class."""
        self._keys = keys
        self._reception.use(keys)

    async def heard(self) -> Beacon | WrongJoinCode:
        """See the base class."""
        return await self._inbox.get()

    async def stop(self) -> None:
        """See the base class."""
        if self._announcing and self._listener:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._announcing.cancel()
            await asyncio.gather(self._announcing, return_exceptions=True)
            self._send(leaving=True)
        for udp in (self._speaker, self._listener):
            if udp:
                udp.close()

    async def _announce(self) -> None:
        while True:
            self._send()
            await asyncio.sleep(EVERY_S)

    def _send(self, *, leaving: bool = False) -> None:
        assert self._speaker is not None, "beacons need start() first"
        if self._own is None:
            return
        # This clock does not go back while the machine runs, so the counter rises over restarts of the process too.
        self._counter = max(self._counter + 1, time.monotonic_ns())
        beacon = msgspec.structs.replace(self._own, counter=self._counter, leaving=leaving)
        with suppress(OSError):  # the interface may be down just now; the next beacon comes in a second
            self._speaker.sendto(seal(beacon, self._keys), (self._broadcast, self._port))

    def _read(self) -> None:
        assert self._listener is not None, "only a listener that was started is read"
        with suppress(BlockingIOError):
            for _ in range(_AT_ONCE):
                datagram, (source, _) = self._listener.recvfrom(LONGEST + 1)
                self._take(datagram, source)

    def _take(self, datagram: bytes, source: str) -> None:
        heard = self._reception.take(datagram, source, time.monotonic())
        if heard is None:
            return
        try:
            self._inbox.put_nowait(heard)
        except asyncio.QueueFull:
            self.dropped["inbox full"] += 1


def broadcast_of(host: str) -> str:
    """Where beacons of the interface with this address go; empty where it has no IPv4 broadcast."""
    address = ipaddress.ip_address(host)
    if address.version == 4 and address.is_loopback:
        return LOOPBACK
    interfaces = psutil.net_if_addrs().values()
    own = (a for addresses in interfaces for a in addresses if a.family == socket.AF_INET and a.address == host)
    return next((a.broadcast for a in own if a.broadcast), "")


def _speaker(host: str) -> socket.socket:
    """What is sent comes from `host`: a listener believes only in join ports at the address that a beacon came from."""
    udp = _udp()
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    return _bound(udp, host, 0)


def _listener(broadcast: str, port: int) -> socket.socket:
    """Hears what is sent to this broadcast address, and so nothing of other interfaces."""
    udp = _udp()
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    return _bound(udp, broadcast, port)


def _udp() -> socket.socket:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setblocking(False)
    return udp


def _bound(udp: socket.socket, host: str, port: int) -> socket.socket:
    try:
        udp.bind((host, port))
    except OSError:
        udp.close()
        raise
    return udp
