"""Placements carried out over two real hubs: what stays loaded, and what does not."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from actors.placer import Placer
from bus.client import BusClient, RequestError
from bus.messages import RequestCancel, RequestDone, RequestFailed, ShardLoad, ShardLoaded, ShardUnload, StageJoin
from bus.wire import Envelope
from cluster.capabilities import DeviceCapabilities
from cluster.instances import Instances
from cluster.partitioning import RingMemoryWeightedPartitioningStrategy
from cluster.topology import NodeRecord, Topology
from models.catalogue import DEFAULT_MODEL, Catalogue
from tests.rig_bus import RunningHub, client, heard, link, running_hub

A, B = "a" * 16, "b" * 16
POSITIONS = {A: 5000, B: 6000}
CARD = Catalogue.load().get(DEFAULT_MODEL)
MEMBERS = (
    Topology()
    .with_node(
        NodeRecord(A, "ada", 1, 1, DeviceCapabilities(memory_available=4 << 30)),
    )
    .with_node(NodeRecord(B, "bob", 1, 1, DeviceCapabilities(memory_available=4 << 30)))
)


async def look() -> Topology:
    return MEMBERS


def placer(bus: BusClient) -> Placer:
    return Placer(bus, Instances(), RingMemoryWeightedPartitioningStrategy(), look)


async def answer(bus: BusClient, envelope: Envelope, reply: ShardLoaded | RequestDone | RequestFailed) -> None:
    await bus.send(envelope.header.sender, reply, cause=envelope.header.id)


async def load(member: BusClient) -> None:
    """Serve one `shard.load`."""
    _, envelope = await heard(member, ShardLoad)
    loaded = ShardLoaded(
        f"{member.node_id}/engine", "numpy", ("tcp://127.0.0.1:1",), positions=POSITIONS[member.node_id]
    )
    await answer(member, envelope, loaded)


async def unload(member: BusClient) -> None:
    """Serve one `shard.unload`."""
    _, envelope = await heard(member, ShardUnload)
    await answer(member, envelope, RequestDone())


async def join(bus: BusClient) -> None:
    """Serve one `stage.join`."""
    _, envelope = await heard(bus, StageJoin)
    await answer(bus, envelope, RequestDone())


async def clients(stack: AsyncExitStack, one: RunningHub, two: RunningHub) -> tuple[BusClient, BusClient, BusClient]:
    """The two members of linked nodes, and who places."""
    ada = await stack.enter_async_context(client(one.run_dir, A, "node"))
    bob = await stack.enter_async_context(client(two.run_dir, B, "node"))
    await link(ada, two.endpoint)
    return ada, bob, await stack.enter_async_context(client(one.run_dir, A, "placer"))


def test_an_asker_who_leaves_leaves_nothing_loaded_on_the_member_that_was_done() -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            ada, bob, asker = await clients(stack, one, two)
            placing = asyncio.create_task(placer(asker).ensure(CARD))
            await load(ada)
            await heard(bob, ShardLoad)  # and never answers
            placing.cancel()
            await heard(bob, RequestCancel)
            await asyncio.gather(unload(ada), unload(bob))
            with pytest.raises(asyncio.CancelledError):
                await placing

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


def test_a_member_that_fails_has_the_others_unload() -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            ada, bob, asker = await clients(stack, one, two)
            placing = asyncio.create_task(placer(asker).ensure(CARD))
            await load(ada)
            _, envelope = await heard(bob, ShardLoad)
            await answer(bob, envelope, RequestFailed("load_failed", "the disk is gone"))
            await asyncio.gather(unload(ada), unload(bob))
            with pytest.raises(RequestError, match="the disk is gone"):
                await placing

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


def test_an_instance_tells_what_each_of_its_stages_can_hold() -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            ada, bob, asker = await clients(stack, one, two)
            engines = [
                await stack.enter_async_context(client(hub.run_dir, node, "engine"))
                for hub, node in ((one, A), (two, B))
            ]
            placing = asyncio.create_task(placer(asker).ensure(CARD))
            await asyncio.gather(load(ada), load(bob), *(join(engine) for engine in engines))
            stages = (await placing).stages
            assert {stage.node_id: stage.positions for stage in stages} == POSITIONS

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())
