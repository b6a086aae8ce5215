"""Beacons over UDP broadcast, once a second. Nodes that listen on loopback only also beacon on loopback only.

Several nodes of one machine share the port. A beacon is JSON of at most 512 bytes; what does not parse is counted.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

import msgspec
import psutil

from cluster.membership import Beacon
from discovery.discovery import Discovery

EVERY_S = 1.0
MAX_BYTES = 512
MAX_WAITING = 256
LOOPBACK = "127.255.255.255"  # reaches every socket of this machine that listens on the port

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Beacon).decode


class UdpDiscovery(Discovery):
    """Announces and hears beacons on `port`. `loopback` keeps them on this machine."""

    def __init__(self, port: int, *, loopback: bool) -> None:
        self.dropped = 0
        self._port = port
        self._loopback = loopback
        self._inbox: asyncio.Queue[Beacon] = asyncio.Queue(MAX_WAITING)
        self._transport: asyncio.DatagramTransport | None = None
        self._announcing: asyncio.Task[None] | None = None
        self._own: Beacon | None = None

    async def start(self, own: Beacon) -> None:
        """See the base class."""
        self._own = own
        loop = asyncio.get_running_loop()
        try:
            self._transport, _ = await loop.create_datagram_endpoint(
                lambda: _Receiver(self._receive), sock=_shared_socket(self._port, self._loopback)
            )
        except OSError as error:
            raise OSError(
                f"cannot listen for beacons on UDP port {self._port} ({error.strerror}); pass --discovery-port"
            ) from None
        self._announcing = asyncio.create_task(self._announce())

    async def heard(self) -> Beacon:
        """See the base class."""
        return await self._inbox.get()

    async def stop(self) -> None:
        """See the base class."""
        if self._announcing:
            self._announcing.cancel()
            await asyncio.gather(self._announcing, return_exceptions=True)
        if self._own and self._transport:
            self._send(msgspec.structs.replace(self._own, leaving=True))
            self._transport.close()

    async def _announce(self) -> None:
        while True:
            if self._own:
                self._send(self._own)
            await asyncio.sleep(EVERY_S)

    def _send(self, beacon: Beacon) -> None:
        assert self._transport is not None, "beacons need start() first"
        for address in broadcast_addresses(self._loopback):
            with suppress(OSError):  # an interface may be down just now; the next beacon comes in a second
                self._transport.sendto(_encode(beacon), (address, self._port))

    def _receive(self, data: bytes, source: str) -> None:
        try:
            if len(data) > MAX_BYTES:
                raise msgspec.DecodeError("too long")
            self._inbox.put_nowait(reachable(_decode(data), source))
        except (msgspec.DecodeError, UnicodeDecodeError, asyncio.QueueFull):
            self.dropped += 1


def reachable(beacon: Beacon, source: str) -> Beacon:
    """A hub that listens on every address is dialled at the one that its beacon came from."""
    return msgspec.structs.replace(beacon, endpoint=beacon.endpoint.replace("0.0.0.0", source))  # noqa: S104


def broadcast_addresses(loopback: bool) -> list[str]:
    """Where beacons go: this machine only, or every interface's broadcast address."""
    if loopback:
        return [LOOPBACK]
    found = {
        a.broadcast for addresses in psutil.net_if_addrs().values() for a in addresses if a.family == socket.AF_INET
    }
    return [LOOPBACK, *sorted(address for address in found if address)]


def _shared_socket(port: int, loopback: bool) -> socket.socket:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    udp.setblocking(False)
    try:
        udp.bind((LOOPBACK if loopback else "", port))
    except OSError:
        udp.close()
        raise
    return udp


class _Receiver(asyncio.DatagramProtocol):
    def __init__(self, receive: Callable[[bytes, str], None]) -> None:
        self._receive = receive

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self._receive(data, address[0])
