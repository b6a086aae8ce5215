"""`bus.dataplane.actor`: engines and gateways accept the frames of the nodes that their hub is linked to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from actors.engine_actor import EngineActor
from bus.actor import Actor
from bus.client import BusClient
from bus.dataplane.peer_allowlist import PeerAllowlist
from cluster.roles import Role
from gateway.gateway_actor import GatewayActor
from tests.support.bus import WITHIN_S, RunningHub, client, hub_config, in_time, link, new_node, running_hub

MAKERS = pytest.mark.parametrize("make", [EngineActor, GatewayActor])
Make = type[EngineActor] | type[GatewayActor]


@asynccontextmanager
async def running(make: Make, hub: RunningHub, host: str = "127.0.0.1") -> AsyncIterator[PeerAllowlist]:
    """Run an actor of the hub's node; yield the nodes that it accepts."""
    config = hub_config(hub.run_dir, hub.node_id)
    actor = make(config, BusClient(hub.run_dir, hub.node_id, "actor"))
    task = asyncio.create_task(serve(actor))
    try:
        assert actor._allowlist is not None
        yield actor._allowlist
    finally:
        actor.stop()
        await asyncio.wait_for(task, WITHIN_S)


async def serve(actor: Actor) -> None:
    await actor.run()


async def comes_to(allowlist: PeerAllowlist, node: str, role: Role | None) -> bool:
    """Return whether the node has this role there in time."""
    return await asyncio.to_thread(in_time, lambda: allowlist.role_of(node) is role)


@MAKERS
def test_nodes_linked_earlier_are_accepted_until_they_leave(make: Make) -> None:
    async def test() -> None:
        async with client(one.run_dir, one.node_id, "asker") as asker:
            await link(asker, two.join_endpoint)
            async with running(make, one) as allowlist:
                assert await comes_to(allowlist, two.node_id, Role.MEMBER)
                await asyncio.to_thread(two.stop)
                assert await comes_to(allowlist, two.node_id, None)

    with running_hub(new_node()) as one, running_hub(new_node()) as two:
        asyncio.run(test())


@MAKERS
def test_nodes_linked_later_are_accepted_in_their_roles(make: Make) -> None:
    async def test() -> None:
        async with client(two.run_dir, two.node_id, "asker") as asker, running(make, one) as allowlist:
            assert await comes_to(allowlist, one.node_id, Role.MEMBER)
            await link(asker, one.join_endpoint)
            assert await comes_to(allowlist, two.node_id, Role.OBSERVER)

    with running_hub(new_node()) as one, running_hub(new_node(), role=Role.OBSERVER) as two:
        asyncio.run(test())


@MAKERS
def test_standalone_actor_has_no_allowlist(make: Make) -> None:
    async def test() -> None:
        actor = make(hub_config(one.run_dir, one.node_id), BusClient(one.run_dir, one.node_id, "actor"))
        assert actor._allowlist is None
        await actor.bus.close()

    with running_hub("0123456789abcdef") as one:
        asyncio.run(test())
