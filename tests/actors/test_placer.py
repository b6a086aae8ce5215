"""`actors.placer` over two real hubs: what is loaded and unloaded, and when a ring grows."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from actors.placer import Placer
from actors.placing.unloading import Unloading
from bus.client import BusClient, RequestError
from bus.messages import (
    InstanceDown,
    InstanceFailed,
    InstanceJoin,
    InstanceJoined,
    InstanceUp,
    Reply,
    RequestCancel,
    RequestDone,
    RequestFailed,
    ShardLoad,
    ShardLoaded,
    ShardUnload,
)
from bus.net.endpoints import with_key
from bus.wire import Envelope
from cluster.capabilities import DeviceCapabilities
from cluster.failures import FailureCode
from cluster.instances import Instances
from cluster.partitioning import RingMemoryWeightedPartitioningStrategy
from cluster.placement import Instance, PlacedStage
from cluster.room import StageUse
from cluster.shard import whole
from cluster.topology import NodeRecord, RecordNumber, Topology
from models.card import ModelCard
from models.catalogue import DEFAULT_MODEL, Catalogue
from tests.support.bus import KEYS, RunningHub, client, link, new_node, next_message, running_hub

A, B = new_node(), new_node()
POSITIONS = {A: 5000, B: 6000}
NUMBER = RecordNumber(1, 1)
CARD = Catalogue.load().get(DEFAULT_MODEL)


def member(node_id: str, name: str, engine: str = "numpy", memory: int = 4 << 30) -> NodeRecord:
    """Return the record of a node; by default it has enough memory for any share of the model."""
    return NodeRecord(node_id, name, 1, 1, DeviceCapabilities(memory_available=memory, engine=engine))


TIGHT, SMALL = 64 << 20, 400 << 20  # not enough for a layer with the head; enough for some layers, not for all
ALONE = Topology().with_node(member(A, "ada"))
MEMBERS = ALONE.with_node(member(B, "bob"))
FULL = Topology().with_node(member(A, "ada", memory=TIGHT)).with_node(member(B, "bob", memory=SMALL))


def placer(bus: BusClient, instances: Instances | None = None, *looks: Topology) -> Placer:
    """Return a placer that sees these topologies one after the other, and then two nodes with enough memory."""
    seen = iter(looks)

    async def look(card: ModelCard) -> Topology:
        return next(seen, MEMBERS)

    def able(topology: Topology, card: ModelCard) -> Topology:
        return topology

    instances, strategy = instances or Instances(A), RingMemoryWeightedPartitioningStrategy()
    return Placer(bus, instances, Unloading(bus, instances), strategy, look, able, lambda: NUMBER, lambda card: "")


def standing(*placed: Instance) -> Instances:
    """Return node A's view, in which these instances stand."""
    instances = Instances(A)
    instances.link(B)
    for instance in placed:
        instances.announce(instance, (NUMBER,) * len(instance.stages))
    return instances


def on_ada_alone() -> Instance:
    """Return an instance that was placed before bob joined."""
    stage = PlacedStage(A, whole(CARD.id, CARD.n_layers), f"{A}/engine", "numpy")
    return Instance("0011223344556677", CARD.id, 1, (stage,), A)


async def answer(bus: BusClient, envelope: Envelope, reply: Reply) -> None:
    await bus.send(envelope.header.sender, reply, cause=envelope.header.id)


def loaded(node_id: str, endpoint: str = "", actor: str = "") -> ShardLoaded:
    """Return what a member replies once it has loaded; a dishonest one names another endpoint or actor."""
    own = with_key("tcp://127.0.0.1:1", KEYS[node_id].public)
    return ShardLoaded(actor or f"{node_id}/engine", "numpy", (endpoint or own,), positions=POSITIONS[node_id])


async def load(member: BusClient, answered: ShardLoaded | None = None) -> None:
    """Serve one `shard.load`."""
    _, envelope = await next_message(member, ShardLoad)
    await answer(member, envelope, answered or loaded(member.node_id))


async def unload(member: BusClient) -> None:
    """Serve one `shard.unload`."""
    _, envelope = await next_message(member, ShardUnload)
    await answer(member, envelope, RequestDone())


async def join(member: BusClient) -> None:
    """Serve one `instance.join`."""
    _, envelope = await next_message(member, InstanceJoin)
    await answer(member, envelope, InstanceJoined(NUMBER))


async def load_and_join(member: BusClient) -> None:
    """Serve one `shard.load` and then one `instance.join`."""
    await load(member)
    await join(member)


async def clients(stack: AsyncExitStack, one: RunningHub, two: RunningHub) -> tuple[BusClient, BusClient, BusClient]:
    """Return the node actors of two linked nodes, and a client for the placer."""
    ada = await stack.enter_async_context(client(one.run_dir, A, "node"))
    bob = await stack.enter_async_context(client(two.run_dir, B, "node"))
    await link(ada, two.join_endpoint)
    return ada, bob, await stack.enter_async_context(client(one.run_dir, A, "placer"))


def test_cancelled_placement_leaves_nothing_loaded() -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            ada, bob, asker = await clients(stack, one, two)
            placing = asyncio.create_task(placer(asker).ensure(CARD))
            await load(ada)
            await next_message(bob, ShardLoad)  # and never replies
            placing.cancel()
            await next_message(bob, RequestCancel)
            await asyncio.gather(unload(ada), unload(bob))
            with pytest.raises(asyncio.CancelledError):
                await placing

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


def test_failed_member_makes_the_others_unload() -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            ada, bob, asker = await clients(stack, one, two)
            placing = asyncio.create_task(placer(asker).ensure(CARD))
            await load(ada)
            _, envelope = await next_message(bob, ShardLoad)
            await answer(bob, envelope, RequestFailed(FailureCode.LOAD_FAILED, "the disk is gone"))
            await asyncio.gather(unload(ada), unload(bob))
            with pytest.raises(RequestError, match="the disk is gone"):
                await placing

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


def test_instance_names_the_positions_of_each_stage() -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            ada, bob, asker = await clients(stack, one, two)
            placing = asyncio.create_task(placer(asker).ensure(CARD))
            await asyncio.gather(load_and_join(ada), load_and_join(bob))
            stages = (await placing).stages
            assert {stage.node_id: stage.positions for stage in stages} == POSITIONS

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        (loaded(B, with_key("tcp://127.0.0.1:1", KEYS[A].public)), "names no endpoint of its own"),
        (loaded(B, "tcp://127.0.0.1:1"), "does not name its node's key"),
        (loaded(B, actor=f"{A}/engine"), "names another node's engine"),
    ],
    ids=["another node's end point", "an end point without a key", "another node's engine"],
)
def test_member_must_name_its_own_endpoint_and_engine(named: ShardLoaded, sentence: str) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            ada, bob, asker = await clients(stack, one, two)
            placing = asyncio.create_task(placer(asker).ensure(CARD))
            await asyncio.gather(load(ada), load(bob, named))
            await asyncio.gather(unload(ada), unload(bob))
            with pytest.raises(RequestError, match=sentence):
                await placing

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


def test_ring_grows_beside_the_old_instance() -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            ada, bob, asker = await clients(stack, one, two)
            observer = await stack.enter_async_context(client(one.run_dir, A, "observer", InstanceUp, InstanceDown))
            instances = standing(old := on_ada_alone())
            growing = placer(asker, instances)
            assert growing.grow(CARD, MEMBERS)
            loads = asyncio.gather(load(ada), load(bob))
            assert await growing.ensure(CARD) == old  # at once, while the larger ring is loading
            await asyncio.gather(loads)
            await asyncio.gather(join(ada), join(bob))
            up, _ = await next_message(observer, InstanceUp)
            assert set(up.instance.node_ids) == {A, B}
            assert await growing.ensure(CARD) == up.instance  # at once, while the old one drains
            drain, envelope = await next_message(ada, ShardUnload)
            assert drain.instance_id == old.instance_id
            await answer(ada, envelope, RequestDone())
            down, _ = await next_message(observer, InstanceDown)
            assert (down.instance_id, down.reason) == (old.instance_id, "it was replaced")
            instances.end(up.instance.instance_id)  # bob leaves
            instances.announce(msgspec.structs.replace(old, instance_id="8899aabbccddeeff", epoch=3), (NUMBER,))
            assert growing.grow(CARD, MEMBERS)  # and comes back
            await growing.stop()

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


def test_failed_growth_keeps_the_old_instance() -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            ada, bob, asker = await clients(stack, one, two)
            observer = await stack.enter_async_context(client(one.run_dir, A, "observer", InstanceFailed))
            instances = standing(old := on_ada_alone())
            growing = placer(asker, instances)
            assert growing.grow(CARD, MEMBERS)
            assert not growing.grow(CARD, MEMBERS)  # one is running already
            await load(ada)
            _, envelope = await next_message(bob, ShardLoad)
            await answer(bob, envelope, RequestFailed(FailureCode.LOAD_FAILED, "the disk is gone"))
            await asyncio.gather(unload(ada), unload(bob))
            failed, _ = await next_message(observer, InstanceFailed)
            assert failed.message == "the disk is gone"
            assert await growing.ensure(CARD) == old
            assert not growing.grow(CARD, MEMBERS)  # the same nodes were tried a moment ago

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


def test_older_instance_beside_the_newest_is_ended() -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            ada, _, asker = await clients(stack, one, two)
            old = on_ada_alone()
            stages = (*old.stages, PlacedStage(B, whole(CARD.id, CARD.n_layers), f"{B}/engine", "numpy"))
            new = Instance("8899aabbccddeeff", CARD.id, 2, stages, B)
            growing = placer(asker, standing(old, new))
            assert growing.grow(CARD, MEMBERS)
            ended, envelope = await next_message(ada, ShardUnload)
            assert ended.instance_id == old.instance_id
            await answer(ada, envelope, RequestDone())
            assert await growing.ensure(CARD) == new

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


@pytest.mark.parametrize(("after", "nodes"), [(MEMBERS, {A, B}), (FULL, {A})], ids=["room", "no room"])
def test_growth_waits_for_the_old_rings_memory(
    monkeypatch: pytest.MonkeyPatch, after: Topology, nodes: set[str]
) -> None:
    monkeypatch.setattr("actors.placer.SETTLE_S", 0.0)

    async def test() -> None:
        async with AsyncExitStack() as stack:
            ada, bob, asker = await clients(stack, one, two)
            instances = standing(on_ada_alone())
            growing = placer(asker, instances, FULL, after)
            assert growing.grow(CARD, MEMBERS)
            await unload(ada)
            waiting = asyncio.create_task(growing.ensure(CARD))  # nothing stands now
            members = [ada, bob] if B in nodes else [ada]
            await asyncio.gather(*(load_and_join(node) for node in members))
            assert set((await waiting).node_ids) == nodes

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


def test_ring_stays_if_its_end_makes_no_room_for_a_larger_one() -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            ada, _, asker = await clients(stack, one, two)
            instances = standing(old := on_ada_alone())
            instances.record(A, NUMBER, [old], uses=[StageUse(old.instance_id, 5, 1)])
            growing = placer(asker, instances, FULL)
            assert growing.grow(CARD, MEMBERS)
            for marker in ("first", "second"):  # by the second one, growth has sent what it sends
                await asker.send(f"{A}/node", ShardUnload(marker, 1))
                message, _ = await next_message(ada, ShardUnload)
                assert message.instance_id == marker
            assert await growing.ensure(CARD) == old

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


def other_on_ada(idle_s: int) -> tuple[Instance, Instances]:
    """Return an instance of another model, and the view in which it stands and its end makes room."""
    other = msgspec.structs.replace(on_ada_alone(), model_id="other")
    instances = standing(other)
    instances.record(A, NUMBER, [other], uses=[StageUse(other.instance_id, idle_s, 4 << 30)])
    return other, instances


def test_idle_model_is_unloaded_before_another_is_loaded() -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            ada, bob, asker = await clients(stack, one, two)
            observer = await stack.enter_async_context(client(one.run_dir, A, "observer", InstanceDown))
            other, instances = other_on_ada(idle_s=9)
            placing = asyncio.create_task(placer(asker, instances, FULL, FULL).ensure(CARD))
            drain, envelope = await next_message(ada, ShardUnload)
            assert (drain.instance_id, drain.if_idle) == (other.instance_id, True)
            await answer(ada, envelope, RequestDone())
            await unload(ada)
            down, _ = await next_message(observer, InstanceDown)
            assert (down.instance_id, down.reason) == (
                other.instance_id,
                f"it was idle, and {CARD.id} needs its memory",
            )
            await asyncio.gather(load(ada), load(bob))
            await asyncio.gather(join(ada), join(bob))
            assert set((await placing).node_ids) == {A, B}
            assert instances.get(other.instance_id) is None

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


@pytest.mark.parametrize("idle_s", [9, 0], ids=["it has a session by now", "in use"])
def test_model_in_use_stays_and_the_other_is_refused(monkeypatch: pytest.MonkeyPatch, idle_s: int) -> None:
    monkeypatch.setattr("actors.placer.WAIT_S", 0.0)

    async def test() -> None:
        async with AsyncExitStack() as stack:
            ada, _, asker = await clients(stack, one, two)
            other, instances = other_on_ada(idle_s)
            placing = asyncio.create_task(placer(asker, instances, *[FULL] * 3).ensure(CARD))
            if idle_s:
                _, envelope = await next_message(ada, ShardUnload)
                await answer(ada, envelope, RequestFailed(FailureCode.BUSY, "it has sessions"))
            with pytest.raises(RequestError, match="loaded now: other") as refused:
                await placing
            assert refused.value.code is FailureCode.INSUFFICIENT_MEMORY
            assert instances.standing() == (other,)

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


def test_room_that_another_placer_took_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.placer.TAKEN_S", 0.0)

    async def test() -> None:
        async with AsyncExitStack() as stack:
            ada, bob, asker = await clients(stack, one, two)
            placing = asyncio.create_task(placer(asker, None, MEMBERS, ALONE).ensure(CARD))
            await load(ada)
            _, envelope = await next_message(bob, ShardLoad)
            await answer(bob, envelope, RequestFailed(FailureCode.INSUFFICIENT_MEMORY, "the memory is in use by now"))
            await asyncio.gather(unload(ada), unload(bob))
            await load_and_join(ada)
            assert (await placing).node_ids == (A,)

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


def test_nothing_grows_without_another_node() -> None:
    async def test(run_dir: Path) -> None:
        async with client(run_dir, A, "placer") as bus:
            assert not placer(bus).grow(CARD, MEMBERS)  # nothing stands
            growing = placer(bus, standing(on_ada_alone()))
            assert not growing.grow(CARD, ALONE)
            assert not growing.grow(CARD, ALONE.with_node(member(B, "bob", engine="")))  # not measured yet
            assert growing.grow(CARD, MEMBERS)
            await growing.stop()

    with running_hub(A) as hub:
        asyncio.run(test(hub.run_dir))
