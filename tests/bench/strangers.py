"""What unknown clients cost a hub: unknown keys, many idle connections and half-sent frames.

The hub runs in a process of its own.
"""

from __future__ import annotations

import asyncio
import resource
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import psutil

from bus.messages import HubState
from tests.bench.figures import Figure
from tests.support.bus import client, described, running_hub
from tests.support.network.crowd import (
    GUEST,
    HOST,
    connect_at_once,
    half_frames,
    hub_with,
    idle,
    ports,
    seconds_to_join,
    seconds_until_closed,
)

UNKNOWN_KEYS = 10_000
IDLE = 10_000
HALVES = 40
JOINS = 5


def measure() -> list[Figure]:
    """Measure `strangers`, `half_open_kib`, `idle_reaped_s` and `join_crowd_ms`."""
    _allow_files(IDLE + 500)
    with hub_with() as (process, folder):
        listening = ports(_state(folder))
        accepted = sum(connect_at_once(_state(folder).endpoint, 100) for _ in range(UNKNOWN_KEYS // 100))
        halves = [_half_open_kib(process.process.pid, port) for port in listening]
    with hub_with() as (_, folder):
        undisturbed = [_join(ports(_state(folder))[1]) for _ in range(JOINS)]
        closed_s, joined_ms = _idle_crowd(ports(_state(folder)))
    return [
        Figure("strangers", accepted, "accepted", "0", note=f"of {UNKNOWN_KEYS} unknown keys at the bus port"),
        Figure("half_open_kib", max(halves), "KiB", "≤ 1024", note="memory of the hub for one half-sent frame"),
        Figure("idle_reaped_s", closed_s, "s", "≤ 5", floor=3.0, note=f"until {IDLE} silent connections were closed"),
        Figure(
            "join_crowd_ms", joined_ms, "ms", "≤ 100", baseline=median(undisturbed),
            note="join request to link, amid these connections",
        ),
    ]  # fmt: skip


def _idle_crowd(listening: list[int]) -> tuple[float, float]:
    """Open many idle connections. Returns the seconds until all are closed, and the milliseconds of a join."""
    with ExitStack() as crowd:
        clients = [idle(crowd, listening[number % 2]) for number in range(IDLE)]
        joined_ms = _join(listening[1])
        return seconds_until_closed(clients), joined_ms


def _join(join_port: int) -> float:
    """Join with a hub of another node, and return the milliseconds."""
    with running_hub(GUEST) as guest:
        return seconds_to_join(guest.run_dir, join_port) * 1000


def _half_open_kib(pid: int, port: int) -> float:
    memory = psutil.Process(pid)
    before = memory.memory_info().rss
    with ExitStack() as crowd:
        half_frames(crowd, port, HALVES)
        return (memory.memory_info().rss - before) / HALVES / 1024


def _state(folder: Path) -> HubState:
    async def get() -> HubState:
        async with client(folder, HOST, "bench") as bus:
            return await described(bus, lambda state: bool(state.join_endpoint))

    return asyncio.run(get())


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, count), hard), hard))
