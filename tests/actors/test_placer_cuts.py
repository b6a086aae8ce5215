"""What the placer tells the members of a ring: whole models for engines that refuse parts, and one number of bits."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from bus.messages import RequestFailed, ShardLoad
from cluster.capabilities import DeviceCapabilities
from cluster.failures import FailureCode
from cluster.instances import Instances
from cluster.placement import Instance, PlacedStage
from cluster.shard import whole
from cluster.topology import NodeRecord, Topology
from models.catalogue import Catalogue
from tests.actors.test_placer import (
    CARD,
    MEMBERS,
    A,
    B,
    answer,
    clients,
    load,
    load_and_join,
    placer,
    standing,
    unload,
)
from tests.support.bus import next_message, running_hub

FLOAT = Catalogue.load().get("llama-3.2-3b")


def test_model_is_placed_whole_once_a_part_is_refused() -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            ada, bob, asker = await clients(stack, one, two)
            instances = Instances(A)
            learning = placer(asker, instances)
            placing = asyncio.create_task(learning.ensure(CARD))
            await load(ada)
            _, envelope = await next_message(bob, ShardLoad)
            await answer(bob, envelope, RequestFailed(FailureCode.NOT_IN_PARTS, "its layers pass on more"))
            await asyncio.gather(unload(ada), unload(bob))
            roomiest = min(ada, bob, key=lambda member: member.node_id)  # both have as much
            await load_and_join(roomiest)
            (placed,) = (await placing).stages
            assert (placed.node_id, placed.shard) == (roomiest.node_id, whole(CARD.id, CARD.n_layers))
            instances.link(B)
            assert not learning.grow(CARD, MEMBERS)

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


def rounding(ada: int, bob: int) -> Topology:
    """Return two nodes with `--quantize auto`, and so many megabytes of memory."""
    topology = Topology()
    for node_id, megabytes in ((A, ada), (B, bob)):
        can = DeviceCapabilities(memory_available=megabytes * 10**6, engine="onnx", precision="fast", quantize="auto")
        topology = topology.with_node(NodeRecord(node_id, node_id, 1, 1, can))
    return topology


ROOM, LITTLE_ROOM = rounding(4000, 3000), rounding(2400, 2200)


@pytest.mark.parametrize(("members", "bits"), [(ROOM, 8), (LITTLE_ROOM, 4)], ids=["room", "little room"])
def test_members_are_told_one_number_of_bits(members: Topology, bits: int) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            ada, bob, asker = await clients(stack, one, two)
            placing = asyncio.create_task(placer(asker, None, members).ensure(FLOAT))
            works = [await next_message(member, ShardLoad) for member in (ada, bob)]
            placing.cancel()
            assert [work.auto_bits for work, _ in works] == [bits, bits]
            await asyncio.gather(unload(ada), unload(bob))

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


def test_growth_takes_no_bits_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.placer.SETTLE_S", 0.0)
    alone = PlacedStage(A, whole(FLOAT.id, FLOAT.n_layers), f"{A}/engine", "onnx", quantized_bits=8)

    async def test() -> None:
        async with AsyncExitStack() as stack:
            ada, bob, asker = await clients(stack, one, two)
            old = Instance("0011223344556677", FLOAT.id, 1, (alone,), A)
            growing = placer(asker, standing(old), LITTLE_ROOM, ROOM)  # a ring of 4 bits has room beside the old one
            assert growing.grow(FLOAT, LITTLE_ROOM)
            await unload(ada)
            works = [await next_message(member, ShardLoad) for member in (ada, bob)]
            await growing.stop()
            assert [work.auto_bits for work, _ in works] == [8, 8]

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())
