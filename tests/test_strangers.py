"""Crowds at the doors of a real hub: unknown keys, idle connections, half-sent frames, no descriptors left.

What it costs is bounded by what was promised, and a member gets in all the while.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import zmq

from bus.endpoints import address_of
from bus.keys import new_key_pair
from bus.messages import HubState, PeerDial, RequestDone, Status
from bus.sockets import CONTROL_BYTES, connect, open_socket
from bus.wire import encode, new_header
from tests.rig_bus import (
    HubProcess,
    client,
    described,
    hub_config,
    hub_process,
    link,
    new_node,
    run_folder,
    running_hub,
)

A, B = new_node(), new_node()
UNKNOWN_KEYS = 10_000
IDLE = 10_000
MIB = 1 << 20


@contextmanager
def hub_with(descriptors: int = 0) -> Iterator[tuple[HubProcess, Path]]:
    """A hub in a process of its own, with at most so many open files."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))  # noqa: E731
    with run_folder() as folder, hub_process(hub_config(folder, A), limit if descriptors else None) as process:
        yield process, folder


def ports(state: HubState) -> list[int]:
    return [int(address_of(endpoint).rpartition(":")[2]) for endpoint in (state.endpoint, state.gate)]


def test_of_ten_thousand_unknown_keys_none_gets_in() -> None:
    """With the right key of the hub, which is no secret. All have a fact on their way, which nobody may hear."""

    async def told() -> HubState:
        async with client(hub.run_dir, A, "asker") as asker:
            return await described(asker, lambda state: state.counters.get("refused at bus", 0) >= UNKNOWN_KEYS)

    with running_hub(A) as hub:
        for _ in range(UNKNOWN_KEYS // 250):
            _knock_together(hub.endpoint, 250)
        counters = asyncio.run(told()).counters
        assert counters["refused at bus"] == UNKNOWN_KEYS
        assert not [name for name in counters if name.startswith("dropped")]


def _knock_together(endpoint: str, count: int) -> None:
    """Each ends once the hub has refused it."""
    fact = Status("m", "from a stranger")
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
            dealer.send_multipart(encode("status", new_header(fact, f"{pair.node_id}/node"), fact))
        while left:
            told = poller.poll(10_000)
            assert told, f"{len(left)} of {count} were told nothing within 10 s"
            for monitor, _ in told:
                event = struct.unpack("=HI", monitor.recv_multipart()[0])[0]
                assert event == zmq.Event.HANDSHAKE_FAILED_AUTH
                poller.unregister(monitor)
                left.remove(monitor)


def test_ten_thousand_idle_connections_are_reaped_and_a_member_joins_meanwhile() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < IDLE + 500:
        pytest.skip(f"this machine allows {hard} open files, and the crowd needs {IDLE + 500}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (IDLE + 500 if soft < IDLE + 500 else soft, hard))

    async def test(folder: Path) -> float:
        async with client(folder, A, "asker") as asker:
            doors = ports(await described(asker, lambda state: bool(state.gate)))
            with ExitStack() as crowd, running_hub(B) as guest:
                idle = [_idle(crowd, doors[number % 2]) for number in range(IDLE)]
                begun = time.monotonic()
                await asyncio.to_thread(_join, guest.run_dir, doors[1])
                await asyncio.to_thread(_wait_until_closed, idle)
                return time.monotonic() - begun

    with hub_with() as (_, folder):
        assert asyncio.run(test(folder)) < 15.0  # three seconds on a machine with nothing else to do


def _idle(crowd: ExitStack, port: int) -> socket.socket:
    return crowd.enter_context(socket.create_connection(("127.0.0.1", port), 10.0))


def _join(run_dir: Path, gate: int) -> None:
    async def join() -> None:
        async with client(run_dir, B, "guest") as guest:
            await link(guest, f"tcp://127.0.0.1:{gate}")

    asyncio.run(join())


def _wait_until_closed(idle: list[socket.socket]) -> None:
    """Read each to its end: what the other side's greeting was, then nothing."""
    for one in idle:
        one.settimeout(15.0)
        try:
            while one.recv(4096):
                pass
        except ConnectionResetError:
            continue


@pytest.mark.parametrize("door", [0, 1], ids=["bus", "gate"])
def test_half_a_frame_costs_at_most_a_mebibyte(door: int) -> None:
    """Strangers claim the largest frame that a port takes, or far more, send what they can, and wait."""

    async def test(process: HubProcess, folder: Path) -> float:
        async with client(folder, A, "asker") as asker:
            port = ports(await described(asker, lambda state: bool(state.gate)))[door]
            memory, crowd = psutil.Process(process.process.pid), 40
            before = memory.memory_info().rss
            with ExitStack() as stack:
                for number in range(crowd):
                    _half_a_frame(_idle(stack, port), CONTROL_BYTES - 1 if number % 2 else 16 * MIB)
                await described(asker, lambda state: True)
                grown = memory.memory_info().rss - before
            return grown / crowd

    with hub_with() as (process, folder):
        assert asyncio.run(test(process, folder)) <= MIB


def _half_a_frame(stranger: socket.socket, claimed: int) -> None:
    """A ZMTP greeting for CURVE, and then a command that never ends."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
    stranger.settimeout(2.0)
    try:
        stranger.sendall(greeting)
        stranger.recv(64)
        stranger.sendall(b"\x06" + struct.pack(">Q", claimed))
        stranger.sendall(b"\x05HELLO" + os.urandom(min(claimed - 4096, 4 * MIB)))
    except (ConnectionError, TimeoutError):
        pass  # refused earlier than it might have been


def test_without_descriptors_the_hub_waits_instead_of_spinning_and_takes_members_again() -> None:
    async def test(process: HubProcess, folder: Path) -> float:
        async with client(folder, A, "asker") as asker:
            doors = ports(await described(asker, lambda state: bool(state.gate)))
            hub = psutil.Process(process.process.pid)
            with ExitStack() as crowd:
                for number in range(300):
                    with ExitStack() as attempt:
                        _idle(attempt, doors[number % 2])
                        crowd.push(attempt.pop_all())
                await described(asker, lambda state: "out of descriptors" in state.counters)
                spent = _seconds(hub)
                await asyncio.sleep(2.0)  # a spinning thread would take all of it
                busy = (_seconds(hub) - spent) / 2.0
            with running_hub(B) as guest:
                await asyncio.to_thread(_join_in_the_end, guest.run_dir, doors[1])
            return busy

    with hub_with(descriptors=100) as (process, folder):
        assert asyncio.run(test(process, folder)) < 0.5


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _join_in_the_end(run_dir: Path, gate: int) -> None:
    """As discovery does: knock again while nobody answers."""

    async def join() -> None:
        async with client(run_dir, B, "guest") as guest, asyncio.timeout(20.0):
            while True:
                await guest.request("hub", PeerDial(f"tcp://127.0.0.1:{gate}"), RequestDone, 5.0)
                state = await described(guest, lambda _: True)
                if state.peers:
                    return
                await asyncio.sleep(0.2)

    asyncio.run(join())
