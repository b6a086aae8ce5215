"""Two network namespaces connected by a virtual cable, and a capture of all packets on it. Needs root and `ip`.

A capture can be searched for a secret, also across packets.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")

ALL_PACKETS = 3  # ETH_P_ALL
RECEIVE_BUFFER = 64 << 20
SO_RCVBUFFORCE = 33
WINDOW = 8  # bytes of a text that count as a leak of it
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Side:
    """One end of the cable: a namespace with an address."""

    namespace: str
    address: str

    def command(self, *arguments: str, hidden: Path | None = None) -> list[str]:
        """Return what runs a command on this side. A `hidden` folder, such as the other side's, is empty for it."""
        cover = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hidden)]
        return ["ip", "netns", "exec", self.namespace, *(cover if hidden else []), *arguments]

    def plug(self, *, connected: bool) -> None:
        """Connect this side to the cable, or pull it out; it keeps its address. Raises CalledProcessError."""
        state = "up" if connected else "down"
        subprocess.run(["ip", "-n", self.namespace, "link", "set", "wire", state], check=True, timeout=20)

    def inside(self, do: Callable[[], T]) -> T:
        """Call `do`, which makes a socket for example, on a thread in the namespace, and return its result."""
        results: list[T] = []

        def enter() -> None:
            descriptor = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
            try:
                if _libc.setns(descriptor, 0x40000000):  # CLONE_NEWNET
                    raise OSError(ctypes.get_errno(), "setns")
                results.append(do())
            finally:
                os.close(descriptor)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert results, f"the call failed in {self.namespace}"
        return results[0]


@contextmanager
def wire(name: str) -> Iterator[tuple[Side, Side]]:
    """Make two sides, 10.77.0.1 and 10.77.0.2. Skips the test, with the reason, if the system does not allow it."""
    if not shutil.which("ip") or os.geteuid():
        pytest.skip("network namespaces need root and `ip` (iproute2)")
    sides = Side(f"{name}-a", "10.77.0.1"), Side(f"{name}-b", "10.77.0.2")
    try:
        for side in sides:
            if failed := _ip("netns", "add", side.namespace):
                pytest.skip(f"this system makes no network namespace: {failed}")
        ends = [("wire", "netns", side.namespace) for side in sides]
        _ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for side in sides:
            for link in ("lo", "wire"):
                _ip("-n", side.namespace, "link", "set", link, "up")
            failed = _ip("-n", side.namespace, "address", "add", f"{side.address}/24", "broadcast", "+", "dev", "wire")
            assert not failed, failed
        yield sides
    finally:
        for side in sides:
            _ip("netns", "delete", side.namespace)


def _ip(*arguments: str) -> str:
    """Run `ip`, and return its error message, or an empty text."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=20, check=False)
    return done.stderr.strip() if done.returncode else ""


@dataclass
class Capture:
    """All that was on the cable: whole packets, and the bytes of each direction of each TCP connection."""

    packets: list[bytes] = field(default_factory=list)
    streams: dict[tuple[bytes, bytes], dict[int, bytes]] = field(default_factory=lambda: defaultdict(dict))

    @property
    def tcp_bytes(self) -> int:
        """Number of payload bytes, without repetitions."""
        return sum(len(part) for stream in self.streams.values() for part in stream.values())

    def gives_away(self, secret: bytes, window: int = WINDOW) -> bool:
        """Return whether any `window` bytes of a secret can be seen, in a packet or across packets."""
        seen = [*self.packets, *(_joined(stream) for stream in self.streams.values())]
        pieces = {secret[at : at + window] for at in range(max(len(secret) - window, 0) + 1)}
        return any(piece in part for part in seen for piece in pieces)

    def take(self, packet: bytes) -> None:
        """Add an Ethernet frame."""
        self.packets.append(packet)
        if packet[12:14] != b"\x08\x00" or packet[23] != socket.IPPROTO_TCP:
            return
        tcp = 14 + (packet[14] & 15) * 4
        end = 14 + struct.unpack_from(">H", packet, 16)[0]
        payload = packet[tcp + (packet[tcp + 12] >> 4) * 4 : end]
        connection = packet[26:30] + packet[tcp : tcp + 2], packet[30:34] + packet[tcp + 2 : tcp + 4]
        if payload:
            self.streams[connection][struct.unpack_from(">I", packet, tcp + 4)[0]] = payload


def _joined(parts: dict[int, bytes]) -> bytes:
    return b"".join(part for _, part in sorted(parts.items()))


@contextmanager
def capturing(side: Side) -> Iterator[Capture]:
    """Capture all packets until the end of the block."""
    listener = side.inside(_listener)
    capture, ended = Capture(), threading.Event()
    reader = threading.Thread(target=_read, args=(listener, capture, ended))
    reader.start()
    try:
        yield capture
    finally:
        ended.set()
        reader.join()
        listener.close()


def _listener() -> socket.socket:
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PACKETS))
    listener.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    listener.bind(("wire", 0))
    listener.settimeout(0.1)
    return listener


def _read(listener: socket.socket, capture: Capture, ended: threading.Event) -> None:
    while True:
        try:
            capture.take(listener.recv(1 << 17))
        except TimeoutError:
            if ended.is_set():
                return


def send_plainly(text: bytes, sender: Side, receiver: Side) -> None:
    """Send a text over the cable without encryption, in pieces that cut it."""
    server = receiver.inside(lambda: socket.create_server((receiver.address, 0)))
    client = sender.inside(lambda: socket.create_connection(server.getsockname(), 5.0))
    taken, _ = server.accept()
    with server, client, taken:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(text), 5):
            client.sendall(text[at : at + 5])
            taken.recv(64)


def little_endian(tokens: Sequence[int]) -> bytes:
    """Encode token ids as a data frame does."""
    return struct.pack(f"<{len(tokens)}i", *tokens)
