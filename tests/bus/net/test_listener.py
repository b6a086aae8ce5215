"""Many unknown clients at the ports of a hub: unknown keys, idle connections, half-sent frames, no descriptors left.

Their cost is bounded, and a member can join all the while.
"""

from __future__ import annotations

import asyncio
import resource
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from bus.hub import MAX_MEMORY
from bus.messages import HubState
from tests.support.bus import HubProcess, client, described, running_hub
from tests.support.network.crowd import (
    GUEST,
    HOST,
    MIB,
    connect_at_once,
    half_frames,
    hub_with,
    idle,
    join_in_the_end,
    ports,
    seconds_to_join,
    seconds_until_closed,
)

UNKNOWN_KEYS = 10_000
IDLE = 10_000


def test_ten_thousand_unknown_keys_are_refused() -> None:
    """They use the hub's right key, which is no secret, and each sends a fact, which must not arrive."""

    async def state() -> HubState:
        async with client(hub.run_dir, HOST, "asker") as asker:
            return await described(asker, lambda state: state.counters.get("refused at bus", 0) >= UNKNOWN_KEYS)

    with running_hub(HOST) as hub:
        assert sum(connect_at_once(hub.endpoint, 100) for _ in range(UNKNOWN_KEYS // 100)) == 0
        counters = asyncio.run(state()).counters
        assert counters["refused at bus"] == UNKNOWN_KEYS
        assert not [name for name in counters if name.startswith("dropped")]


def test_ten_thousand_idle_connections_are_closed() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < IDLE + 500:
        pytest.skip(f"this machine allows {hard} open files, and the test needs {IDLE + 500}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, IDLE + 500), hard))

    async def test(folder: Path) -> float:
        async with client(folder, HOST, "asker") as asker:
            both = ports(await described(asker, lambda state: bool(state.join_endpoint)))
            with ExitStack() as crowd, running_hub(GUEST) as guest:
                clients = [idle(crowd, both[number % 2]) for number in range(IDLE)]
                await asyncio.to_thread(seconds_to_join, guest.run_dir, both[1])
                return await asyncio.to_thread(seconds_until_closed, clients)

    with hub_with() as (_, folder):
        assert asyncio.run(test(folder)) < 15.0  # three seconds on an idle machine


@pytest.mark.skipif(not hasattr(psutil.Process, "rlimit"), reason="only Linux reports the limits of a process")
def test_memory_of_a_hub_is_limited() -> None:
    async def test(process: HubProcess, folder: Path) -> int:
        async with client(folder, HOST, "asker") as asker:
            await described(asker, lambda state: bool(state.join_endpoint))
            soft: int = psutil.Process(process.process.pid).rlimit(psutil.RLIMIT_AS)[0]
            return soft

    with hub_with() as (process, folder):
        assert asyncio.run(test(process, folder)) == MAX_MEMORY


@pytest.mark.parametrize("port_index", [0, 1], ids=["bus", "join"])
def test_half_a_frame_costs_at_most_a_mebibyte(port_index: int) -> None:
    async def test(process: HubProcess, folder: Path) -> float:
        async with client(folder, HOST, "asker") as asker:
            port = ports(await described(asker, lambda state: bool(state.join_endpoint)))[port_index]
            memory, crowd = psutil.Process(process.process.pid), 40
            before = memory.memory_info().rss
            with ExitStack() as stack:
                half_frames(stack, port, crowd)
                await described(asker, lambda state: True)
                return (memory.memory_info().rss - before) / crowd

    with hub_with() as (process, folder):
        assert asyncio.run(test(process, folder)) <= MIB


def test_hub_without_descriptors_does_not_spin() -> None:
    async def test(process: HubProcess, folder: Path) -> float:
        async with client(folder, HOST, "asker") as asker:
            both = ports(await described(asker, lambda state: bool(state.join_endpoint)))
            hub = psutil.Process(process.process.pid)
            with ExitStack() as crowd:
                for number in range(300):
                    with suppress(ConnectionError):  # a closed port accepts none
                        idle(crowd, both[number % 2])
                await described(asker, lambda state: "out of descriptors" in state.counters)
                spent = _seconds(hub)
                await asyncio.sleep(2.0)  # a spinning thread would take all of it
                busy = (_seconds(hub) - spent) / 2.0
            with running_hub(GUEST) as guest:
                await asyncio.to_thread(join_in_the_end, guest.run_dir, both[1])
            return busy

    with hub_with(descriptors=100) as (process, folder):
        assert asyncio.run(test(process, folder)) < 0.5


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
