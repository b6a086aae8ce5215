"""Many unknown clients at the ports of a hub in a process of its own: for tests and for the benchmark."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import zmq

from bus.messages import HubState, PeerDial, RequestDone, Status
from bus.net.endpoints import address_of
from bus.net.keys import new_key_pair
from bus.net.sockets import CONTROL_BYTES, connect, open_socket
from bus.wire import encode, new_header
from tests.support.bus import HubProcess, client, described, hub_config, hub_process, link, new_node, run_folder

HOST, GUEST = new_node(), new_node()
MIB = 1 << 20
REAPED_TIMEOUT_S = 15.0


@contextmanager
def hub_with(descriptors: int = 0) -> Iterator[tuple[HubProcess, Path]]:
    """Run a hub in a process of its own, with at most so many open files."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    with run_folder() as folder, hub_process(hub_config(folder, HOST), limit if descriptors else None) as process:
        yield process, folder


def ports(state: HubState) -> list[int]:
    """Return the numbers of the bus port and the join port."""
    return [int(address_of(endpoint).rpartition(":")[2]) for endpoint in (state.endpoint, state.join_endpoint)]


def connect_at_once(endpoint: str, count: int) -> int:
    """Connect with so many unknown keys at once, each of which sends a fact. Returns how many were accepted."""
    fact, accepted = Status("m", "from an unknown key"), 0
    with zmq.Context() as context, ExitStack() as stack:
        poller, left = zmq.Poller(), set()
        for _ in range(count):
            pair = new_key_pair()
            dealer = stack.enter_context(open_socket(context, zmq.DEALER))
            dealer.setsockopt(zmq.IMMEDIATE, 0)
            monitor = dealer.get_monitor_socket(zmq.Event.HANDSHAKE_FAILED_AUTH | zmq.Event.HANDSHAKE_SUCCEEDED)
            stack.callback(monitor.close, 0)
            stack.callback(dealer.disable_monitor)
            poller.register(monitor, zmq.POLLIN)
            left.add(monitor)
            connect(dealer, endpoint, pair)
            dealer.send_multipart(encode("status", new_header(fact, f"{pair.node_id}/node", sequence=1), fact))
        while left:
            events = poller.poll(10_000)
            assert events, f"{len(left)} of {count} were neither accepted nor refused within 10 s"
            for monitor, _ in events:
                event = struct.unpack("=HI", monitor.recv_multipart()[0])[0]
                accepted += event == zmq.Event.HANDSHAKE_SUCCEEDED
                poller.unregister(monitor)
                left.remove(monitor)
    return accepted


def idle(crowd: ExitStack, port: int) -> socket.socket:
    """Open a connection that sends nothing."""
    return crowd.enter_context(socket.create_connection(("127.0.0.1", port), 10.0))


def seconds_until_closed(crowd: Sequence[socket.socket]) -> float:
    """Read each connection to its end. Returns the seconds until then. Raises TimeoutError if one stays open."""
    start = time.monotonic()
    for one in crowd:
        one.settimeout(REAPED_TIMEOUT_S)
        try:
            while one.recv(4096):
                pass
        except ConnectionResetError:
            continue
    return time.monotonic() - start


def seconds_to_join(run_dir: Path, join_endpoint: int) -> float:
    """Have the guest's hub join, and return the seconds until the link is up."""

    async def join() -> float:
        async with client(run_dir, GUEST, "guest") as guest:
            start = time.monotonic()
            await link(guest, f"tcp://127.0.0.1:{join_endpoint}")
            return time.monotonic() - start

    return asyncio.run(join())


def join_in_the_end(run_dir: Path, join_endpoint: int) -> None:
    """Have the guest's hub join, and repeat the request until the port replies, as discovery does."""

    async def join() -> None:
        async with client(run_dir, GUEST, "guest") as guest, asyncio.timeout(20.0):
            while True:
                await guest.request("hub", PeerDial(f"tcp://127.0.0.1:{join_endpoint}"), RequestDone, 5.0)
                state = await described(guest, lambda _: True)
                if state.peers:
                    return
                await asyncio.sleep(0.2)

    asyncio.run(join())


def half_a_frame(connection: socket.socket, claimed: int) -> None:
    """Send a ZMTP greeting for CURVE, and then a command that never ends."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
    connection.settimeout(2.0)
    try:
        connection.sendall(greeting)
        connection.recv(64)
        connection.sendall(b"\x06" + struct.pack(">Q", claimed))
        connection.sendall(b"\x05HELLO" + os.urandom(min(claimed - 4096, 4 * MIB)))
    except (ConnectionError, TimeoutError):
        pass  # refused earlier than it might have been


def half_frames(crowd: ExitStack, port: int, count: int) -> None:
    """Open so many connections, each of which announces the largest frame allowed, or far more, and sends a part."""
    for number in range(count):
        half_a_frame(idle(crowd, port), CONTROL_BYTES - 1 if number % 2 else 16 * MIB)
