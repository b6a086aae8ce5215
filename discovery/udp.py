"""Beacons over UDP broadcast, once a second, on one interface: that of the address where other nodes reach this one.

Nodes that listen on loopback only also send beacons on loopback only. Several nodes of one machine share the port.
Which datagrams are accepted is decided in `discovery.beacon_filter`.
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
from discovery.beacon import MAX_BYTES, Beacon, seal
from discovery.beacon_filter import BeaconFilter, WrongJoinCode
from discovery.discovery import Discovery

EVERY_S = 1.0
MAX_WAITING = 256
RECEIVE_BYTES = 256 << 10
LOOPBACK = "127.255.255.255"  # reaches every socket of this machine that listens on the port
_BATCH = 64  # datagrams read before the loop's other tasks run


class NoBroadcastError(OSError):
    """There is no interface to send beacons on; the message is one sentence with the next step."""


class UdpDiscovery(Discovery):
    """Sends and receives beacons on UDP `port` of the interface that has the IPv4 address `host`."""

    def __init__(self, host: str, port: int, keys: ClusterKeys) -> None:
        self._host, self._port = host, port
        self._keys = keys
        self._filter = BeaconFilter(keys)
        self._inbox: asyncio.Queue[Beacon | WrongJoinCode] = asyncio.Queue(MAX_WAITING)
        self._own: Beacon | None = None
        self._counter = 0
        self._broadcast = ""
        self._sender: socket.socket | None = None
        self._receiver: socket.socket | None = None
        self._announcing: asyncio.Task[None] | None = None

    @property
    def dropped(self) -> Counter[str]:
        """How many datagrams were received and not accepted, by reason."""
        return self._filter.dropped

    async def start(self) -> None:
        """Open the sockets. Raises NoBroadcastError if the interface of `host` has no IPv4 broadcast, or OSError."""
        self._broadcast = broadcast_of(self._host)
        if not self._broadcast:
            raise NoBroadcastError(f"no beacons on {self._host}: its network has no broadcast; name nodes with --peer")
        try:
            self._sender = _open(self._host, 0, socket.SO_BROADCAST)
            # Bound to the broadcast address, so it receives nothing that comes in on other interfaces.
            self._receiver = _open(self._broadcast, self._port, socket.SO_REUSEADDR, socket.SO_REUSEPORT)
            self._receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        except OSError as error:
            raise OSError(
                f"cannot listen for beacons on UDP port {self._port} ({error.strerror}); pass --discovery-port"
            ) from None
        asyncio.get_running_loop().add_reader(self._receiver, self._read)
        self._announcing = asyncio.create_task(self._announce())

    def announce(self, own: Beacon | None) -> None:
        """Announce this beacon from now on, beginning at once if the sockets are open."""
        self._own = own
        if self._sender:
            self._send()

    def use_keys(self, keys: ClusterKeys) -> None:
        self._keys = keys
        self._filter.use_keys(keys)

    async def receive(self) -> Beacon | WrongJoinCode:
        return await self._inbox.get()

    async def stop(self) -> None:
        if self._announcing and self._receiver:
            asyncio.get_running_loop().remove_reader(self._receiver)
            self._announcing.cancel()
            await asyncio.gather(self._announcing, return_exceptions=True)
            self._send(leaving=True)
        for udp in (self._sender, self._receiver):
            if udp:
                udp.close()

    async def _announce(self) -> None:
        while True:
            self._send()
            await asyncio.sleep(EVERY_S)

    def _send(self, *, leaving: bool = False) -> None:
        assert self._sender is not None, "beacons need start() first"
        if self._own is None:
            return
        # This clock does not go back while the machine runs, so the counter also rises over restarts of the process.
        self._counter = max(self._counter + 1, time.monotonic_ns())
        beacon = msgspec.structs.replace(self._own, counter=self._counter, leaving=leaving)
        with suppress(OSError):  # the interface may be down at the moment; the next beacon follows in a second
            self._sender.sendto(seal(beacon, self._keys), (self._broadcast, self._port))

    def _read(self) -> None:
        assert self._receiver is not None, "only an open receiver is read"
        with suppress(BlockingIOError):
            for _ in range(_BATCH):
                datagram, (source, _) = self._receiver.recvfrom(MAX_BYTES + 1)  # a longer one shows by its size
                self._take(datagram, source)

    def _take(self, datagram: bytes, source: str) -> None:
        accepted = self._filter.accept(datagram, source, time.monotonic())
        if accepted is None:
            return
        try:
            self._inbox.put_nowait(accepted)
        except asyncio.QueueFull:
            self.dropped["inbox full"] += 1


def broadcast_of(host: str) -> str:
    """Return the broadcast address of the interface that has this address; empty if it has no IPv4 broadcast."""
    address = ipaddress.ip_address(host)
    if address.version == 4 and address.is_loopback:
        return LOOPBACK
    interfaces = psutil.net_if_addrs().values()
    own = (a for addresses in interfaces for a in addresses if a.family == socket.AF_INET and a.address == host)
    return next((a.broadcast for a in own if a.broadcast), "")


def _open(host: str, port: int, *options: int) -> socket.socket:
    """Open a non-blocking UDP socket with these options set, bound to an address. Raises OSError."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        udp.setblocking(False)
        for option in options:
            udp.setsockopt(socket.SOL_SOCKET, option, 1)
        udp.bind((host, port))
    except OSError:
        udp.close()
        raise
    return udp
