"""What the placer tells the members of a ring: whole models for engines that refuse parts, and one number of bits."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import msgspec
import pytest

from bus.messages import RequestFailed, ShardLoad
from cluster.capabilities import DeviceCapabilities
from cluster.failures import FailureCode
from cluster.instances import Instances
from cluster.shard import whole
from cluster.topology import NodeRecord, Topology
from models.catalogue import Catalogue
from tests.actors.test_placer import CARD, MEMBERS, A, B, answer, clients, load, load_and_join, placer, unload
from tests.support.bus import next_message, running_hub


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


@pytest.mark.parametrize(("memory", "bits"), [(4 << 30, 8), (2200 * 10**6, 4)], ids=["room", "little room"])
def test_members_are_told_one_number_of_bits(memory: int, bits: int) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            ada, bob, asker = await clients(stack, one, two)
            can = DeviceCapabilities(memory_available=memory, engine="onnx", precision="fast", quantize="auto")
            roomy = msgspec.structs.replace(can, memory_available=2400 * 10**6)
            members = Topology().with_node(NodeRecord(A, "ada", 1, 1, roomy)).with_node(NodeRecord(B, "bob", 1, 1, can))
            placing = asyncio.create_task(placer(asker, None, members).ensure(Catalogue.load().get("llama-3.2-3b")))
            works = [await next_message(member, ShardLoad) for member in (ada, bob)]
            placing.cancel()
            assert [work.auto_bits for work, _ in works] == [bits, bits]
            await asyncio.gather(unload(ada), unload(bob))

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())
