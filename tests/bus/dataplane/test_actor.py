"""Engines and gateways of a node: whose frames they take follows the links of their hub, over real hubs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from actors.engine_actor import EngineActor
from bus.actor import Actor
from bus.client import BusClient
from bus.dataplane.access import ClusterAccess
from bus.net.keys import new_key_pair
from cluster.roles import Role
from gateway.gateway_actor import GatewayActor
from tests.support.access import peer, reaches
from tests.support.bus import WITHIN_S, RunningHub, client, hub_config, in_time, link, new_node, running_hub

MAKERS = pytest.mark.parametrize("make", [EngineActor, GatewayActor])
Make = type[EngineActor] | type[GatewayActor]


@asynccontextmanager
async def running(make: Make, hub: RunningHub, host: str = "127.0.0.1") -> AsyncIterator[ClusterAccess]:
    """An actor of the hub's node, and whom it lets in."""
    config = hub_config(hub.run_dir, hub.node_id)
    actor = make(config, BusClient(hub.run_dir, hub.node_id, "actor"))
    task = asyncio.create_task(serve(actor))
    try:
        assert actor._reach is not None
        yield actor._reach
    finally:
        actor.stop()
        await asyncio.wait_for(task, WITHIN_S)


async def serve(actor: Actor) -> None:
    await actor.run()


async def comes_to(reach: ClusterAccess, node: str, role: Role | None) -> bool:
    """Whether in time the node has this role there."""
    return await asyncio.to_thread(in_time, lambda: reach.linked.role_of(node) is role)


@MAKERS
def test_an_actor_takes_the_frames_of_nodes_that_were_linked_before_it_came_and_until_they_go(make: Make) -> None:
    async def test() -> None:
        async with client(one.run_dir, one.node_id, "asker") as asker:
            await link(asker, two.join_endpoint)
            async with running(make, one) as reach:
                assert await comes_to(reach, two.node_id, Role.MEMBER)
                await asyncio.to_thread(two.stop)
                assert await comes_to(reach, two.node_id, None)

    with running_hub(new_node()) as one, running_hub(new_node()) as two:
        asyncio.run(test())


@MAKERS
def test_an_actor_takes_the_frames_of_nodes_that_come_after_it_in_their_roles(make: Make) -> None:
    async def test() -> None:
        async with client(two.run_dir, two.node_id, "asker") as asker, running(make, one) as reach:
            assert await comes_to(reach, one.node_id, Role.MEMBER)
            await link(asker, one.join_endpoint)
            assert await comes_to(reach, two.node_id, Role.OBSERVER)

    with running_hub(new_node()) as one, running_hub(new_node(), role=Role.OBSERVER) as two:
        asyncio.run(test())


@MAKERS
def test_word_of_a_link_that_was_lost_is_made_up_for(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make.look, "every", 0.05)
    ghost = new_key_pair()

    async def test() -> None:
        async with client(one.run_dir, one.node_id, "asker") as asker, running(make, one) as reach:
            reach.linked.standing([peer(ghost)])
            assert await comes_to(reach, ghost.node_id, None)
            await link(asker, two.join_endpoint)
            assert await comes_to(reach, two.node_id, Role.MEMBER)
            reach.linked.gone(two.node_id)
            assert await comes_to(reach, two.node_id, Role.MEMBER)

    with running_hub(new_node()) as one, running_hub(new_node()) as two:
        asyncio.run(test())


def test_a_node_is_missed_at_the_second_look() -> None:
    linked, other, third = (reaches(1)[0].linked, *(new_key_pair() for _ in range(2)))
    linked.standing([peer(other), peer(third)])
    for peers, expected in (((), True), ((peer(other),), True), ((), True), ((), False)):
        linked.seen(peers)
        assert (linked.role_of(other.node_id) is Role.MEMBER) is expected
    assert linked.role_of(third.node_id) is None
    assert linked.allow("ring", other.public) == ""


@MAKERS
def test_an_actor_of_a_node_that_stands_alone_listens_for_nobody(make: Make) -> None:
    async def test() -> None:
        actor = make(hub_config(one.run_dir, one.node_id), BusClient(one.run_dir, one.node_id, "actor"))
        assert actor._reach is None
        await actor.bus.close()

    with running_hub("0123456789abcdef") as one:
        asyncio.run(test())
