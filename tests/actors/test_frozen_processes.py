"""Processes of a real node that are stopped by a signal: the supervisor ends them, and starts actors and hub again."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from actors import supervisor
from bus.messages import ActorDown, ActorStart, ActorStarted, TopologyGet, TopologyState
from tests.actors.test_supervisor import ONLY_TOPOLOGY, WITHIN_S, node
from tests.support.bus import next_message

KILLED_WITHIN_S = 8.0


@pytest.fixture(autouse=True)
def _only_topology(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "ACTORS", ONLY_TOPOLOGY)


def test_frozen_actor_is_replaced_and_frozen_engine_reported(tmp_path: Path) -> None:
    async def main() -> None:
        async with node(tmp_path) as running:
            first = await running.pid_of("topology")
            engine = await running.bus.request("supervisor", ActorStart(), ActorStarted, WITHIN_S)
            for pid in (first, engine.pid):
                os.kill(pid, signal.SIGSTOP)
            async with asyncio.timeout(KILLED_WITHIN_S):
                downs = [(await next_message(running.bus, ActorDown))[0] for _ in range(2)]
            assert {(down.name, down.reason, down.final) for down in downs} == {
                ("topology", "it did not respond for 5.5 s", False),
                (engine.name, "it did not respond for 5.5 s", True),
            }
            assert await running.pid_of("topology", other_than=first)
            assert await running.bus.request("topology", TopologyGet(), TopologyState, WITHIN_S)

    asyncio.run(main())


def test_frozen_hub_is_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        async with node(tmp_path) as running:
            await running.pid_of("topology")
            first = await running.pid_of("hub")
            os.kill(first, signal.SIGSTOP)
            async with asyncio.timeout(KILLED_WITHIN_S):
                await running.notes.shows("hub ended (it did not respond for 5.5 s); it is started again")
            assert await running.pid_of("hub", other_than=first)

    asyncio.run(main())
