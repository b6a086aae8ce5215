"""`bus.hub_service`: work that is addressed to a hub itself."""

from __future__ import annotations

import os

import pytest

from bus.client import RequestError
from bus.messages import LinkProbe, PeerDown, RequestDone, Status, kind_of
from tests.support.bus import RunningHub, clients, described, hubs, link, new_node, run, running_hub

A, B = new_node(), new_node()


def test_hub_refuses_work_that_it_does_not_serve() -> None:
    async def test(pair: list[RunningHub]) -> None:
        async with clients(pair[:1], "asker") as [asker]:
            await link(asker, pair[1].join_endpoint)
            for hub in ("hub", f"{B}/hub"):
                with pytest.raises(RequestError, match=r"a hub does not serve link\.probe"):
                    await asker.request(hub, LinkProbe(), RequestDone, 60.0)

    with hubs(A, B) as pair:
        run(test(pair))


def test_hub_describes_itself() -> None:
    async def test(hub: RunningHub) -> None:
        async with clients([hub], "asker", Status) as [asker]:
            state = await described(asker, lambda state: "status" in state.subscriptions)
            assert (state.node_id, state.name, state.endpoint) == (A, f"name of {A}", hub.endpoint)
            assert [(actor.name, actor.pid) for actor in state.actors] == [("hub", os.getpid()), ("asker", os.getpid())]
            assert kind_of(PeerDown) in state.subscriptions

    with running_hub(A) as hub:
        run(test(hub))
