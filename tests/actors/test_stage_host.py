"""`actors.stage_host`: what an engine has to load. A real hub, with actors of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from actors.node_actor import NodeActor
from bus.client import BusClient, RequestError
from bus.messages import (
    ActorStart,
    ActorStarted,
    ActorStop,
    DownloadDone,
    DownloadWant,
    EngineDescribe,
    EngineLoad,
    EngineState,
    NodeRecorded,
    Reply,
    RequestDone,
    RequestFailed,
    ShardLoad,
    ShardLoaded,
    ShardUnload,
    StageDrain,
    TopologyGet,
    TopologyState,
    Work,
)
from cluster.failures import FailureCode
from cluster.placement import Instance, PlacedStage
from cluster.room import StageUse
from cluster.shard import Shard, whole
from cluster.topology import NodeRecord, RecordNumber, Topology
from common.config import NodeConfig
from engines.settings import MAX_SLOTS
from models.catalogue import DEFAULT_MODEL, Catalogue
from tests.support.actors import Answers, play
from tests.support.bus import WITHIN_S, client, described, link, new_node, next_message, running_hub
from tests.support.gateway.gateway_rig import CARD as TINY_CARD
from tests.support.gateway.gateway_rig import CONTEXT_LENGTH
from tests.support.gateway.gateway_rig import MODEL as TINY

A, B = new_node(), new_node()
CARD = Catalogue.load().get(DEFAULT_MODEL)
OTHER = Catalogue.load().get("smollm2-360m")
WHOLE = whole(CARD.id, CARD.n_layers)
PART = Shard(OTHER.id, 0, 1, OTHER.n_layers)
LATER = RecordNumber(9, 1)  # of a record that the placer does not publish in these tests, so that the stage is wanted
MEMORY = 1 << 30  # less than is free where tests run


class Node:
    """A running node actor, and the loads that its engines received, which they refuse with a `refusal` if it is set.

    The supervisor starts `engine` for a stage, and puts the names of engines that it stops into `stopped`.
    """

    def __init__(self, asker: BusClient) -> None:
        self.loads: list[EngineLoad] = []
        self.engine = "engine-1"
        self.refusal = ""
        self.stopped: asyncio.Queue[str] = asyncio.Queue()
        self.asker = asker

    async def load(self, instance_id: str, shard: Shard, auto_bits: int = 0) -> EngineLoad:
        """Have it load a shard; returns what its engine received."""
        work = ShardLoad(instance_id, 1, shard, LATER, auto_bits=auto_bits)
        await self.asker.request("node", work, ShardLoaded, WITHIN_S)
        return self.loads[-1]

    async def unload(self, instance_id: str) -> None:
        """Have it end a stage."""
        await self.asker.request("node", ShardUnload(instance_id, 1), RequestDone, WITHIN_S)

    def stop_engine(self, work: Work) -> Reply:
        """Record the end of an engine."""
        assert isinstance(work, ActorStop)
        self.stopped.put_nowait(work.name)
        return RequestDone()

    def load_engine(self, work: Work) -> Reply:
        """Record a load, and reply as an engine would."""
        assert isinstance(work, EngineLoad)
        self.loads.append(work)
        if self.refusal:
            return RequestFailed(FailureCode.LOAD_FAILED, self.refusal)
        return ShardLoaded(f"{A}/engine-1", work.engine, ("tcp://127.0.0.1:1",), positions=5)


def drain_engine(work: Work) -> Reply:
    """Reply as an engine with sessions that end at once, if they may."""
    assert isinstance(work, StageDrain)
    return RequestFailed(FailureCode.BUSY, "it has sessions") if work.if_idle else RequestDone()


def config(run_dir: Path, **settings: object) -> NodeConfig:
    """Return the settings of a node with an engine that needs no measuring."""
    fixed: dict[str, object] = {"node_id": A, "name": "ada", "incarnation": 1, "engine": "numpy", "memory": MEMORY}
    folders = dict.fromkeys(("run_dir", "data_dir", "cache_dir"), str(run_dir))
    return msgspec.convert({**fixed, **folders, **settings}, NodeConfig)


@asynccontextmanager
async def running_node(
    run_dir: Path, engines: Sequence[str] = ("engine-1",), **settings: object
) -> AsyncIterator[Node]:
    """Run a node actor among actors of the test, which play these engines, too."""
    async with AsyncExitStack() as stack:
        node = Node(await stack.enter_async_context(client(run_dir, A, "asker")))
        played: dict[str, Answers] = {
            "topology": {TopologyGet: lambda _: TopologyState(Topology())},
            "download": {DownloadWant: lambda _: DownloadDone("model", "model")},
            "supervisor": {ActorStart: lambda _: ActorStarted(node.engine, 1), ActorStop: node.stop_engine},
        }
        for name in engines:
            played[name] = {
                EngineDescribe: lambda _: EngineState(),
                EngineLoad: node.load_engine,
                StageDrain: drain_engine,
            }
        tasks = []
        for name, answers in played.items():
            bus = await stack.enter_async_context(client(run_dir, A, name))
            tasks.append(asyncio.create_task(play(bus, answers)))
        actor = NodeActor(config(run_dir, **settings), BusClient(run_dir, A, "node"))
        running = asyncio.create_task(actor.run())
        try:
            await described(node.asker, lambda state: "node" in [known.name for known in state.actors])
            yield node
        finally:
            actor.stop()
            await asyncio.wait_for(running, WITHIN_S)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def test_engine_gets_its_precision_and_half_the_memory() -> None:
    async def test() -> None:
        async with running_node(hub.run_dir, precision="exact") as node:
            sent = await node.load("i", WHOLE)
        assert sent.kv_bytes == (MEMORY - CARD.shard_bytes(WHOLE)) // 2
        assert sent.kv_bytes >= CARD.least_kv_bytes(WHOLE)
        assert (sent.precision, sent.engine, sent.path) == ("exact", "numpy", "model")

    with running_hub(A) as hub:
        asyncio.run(test())


def test_engine_is_told_to_how_many_bits_it_rounds() -> None:
    async def told(engine: str, quantize: str, auto_bits: int) -> int:
        async with running_node(hub.run_dir, engine=engine, quantize=quantize) as node:
            return (await node.load("i", PART, auto_bits)).quantize_bits

    cases = (("onnx", "auto", 0, 8), ("onnx", "auto", 4, 4), ("onnx", "4", 8, 4), ("numpy", "8", 4, 0))
    for engine, quantize, auto_bits, bits in cases:
        with running_hub(A) as hub:
            assert asyncio.run(told(engine, quantize, auto_bits)) == bits


def test_unknown_bits_are_refused() -> None:
    async def test() -> None:
        async with running_node(hub.run_dir, engine="onnx") as node:
            with pytest.raises(RequestError, match="ada rounds to 8 or 4 bits, not to 6; update exobus there"):
                await node.load("i", PART, auto_bits=6)

    with running_hub(A) as hub:
        asyncio.run(test())


def test_small_model_gets_what_its_slots_use(tmp_path: Path) -> None:
    async def test() -> None:
        async with running_node(hub.run_dir, cards_dir=str(tmp_path)) as node:
            sent = await node.load("i", Shard(TINY, 0, 3, 4))
        position = 3 * 2 * 2 * 16 * 4  # layers, keys and values, heads, numbers a head, bytes
        assert sent.kv_bytes == MAX_SLOTS * CONTEXT_LENGTH * position

    (tmp_path / "model").mkdir()
    (tmp_path / "tiny.toml").write_text(TINY_CARD)
    with running_hub(A) as hub:
        asyncio.run(test())


@pytest.mark.parametrize(("shard", "said"), [(WHOLE, "the file is cut"), (PART, "node ada: the file is cut")])
def test_failure_of_a_part_names_its_node(shard: Shard, said: str) -> None:
    async def test() -> None:
        async with running_node(hub.run_dir) as node:
            node.refusal = "the file is cut"
            with pytest.raises(RequestError) as caught:
                await node.load("i", shard)
        assert (caught.value.code, caught.value.message) == (FailureCode.LOAD_FAILED, said)

    with running_hub(A) as hub:
        asyncio.run(test())


def test_kv_memory_option_is_the_limit() -> None:
    async def test() -> None:
        async with running_node(hub.run_dir, kv_memory=10**6) as node:
            assert (await node.load("i", WHOLE)).kv_bytes == 10**6

    with running_hub(A) as hub:
        asyncio.run(test())


def test_second_model_leaves_the_first_its_reserved_memory() -> None:
    async def test() -> None:
        async with running_node(hub.run_dir) as node:
            first = (await node.load("i", WHOLE)).kv_bytes
            beside = (await node.load("j", PART)).kv_bytes
            await node.unload("i")
            await node.unload("j")
            alone = (await node.load("k", PART)).kv_bytes
        left = MEMORY - OTHER.shard_bytes(PART)
        assert (beside, alone) == ((left - first - CARD.shard_bytes(WHOLE)) // 2, left // 2)

    with running_hub(A) as hub:
        asyncio.run(test())


def test_stage_beyond_the_limit_is_refused_and_ends() -> None:
    async def test() -> None:
        async with running_node(hub.run_dir, memory=CARD.shard_bytes(WHOLE) + 2 * CARD.least_kv_bytes(WHOLE)) as node:
            await node.load("i", WHOLE)
            with pytest.raises(RequestError, match=r"smollm2-360m.* does not fit; try again") as refused:
                await node.load("j", PART)
            assert refused.value.code is FailureCode.INSUFFICIENT_MEMORY
            assert await asyncio.wait_for(node.stopped.get(), WITHIN_S) == "engine-1"

    with running_hub(A) as hub:
        asyncio.run(test())


def test_unload_of_a_stage_in_use_may_be_refused() -> None:
    async def test() -> None:
        async with running_node(hub.run_dir) as node:
            await node.load("i", WHOLE)
            with pytest.raises(RequestError, match="it has sessions"):
                await node.asker.request("node", ShardUnload("i", 1, if_idle=True), RequestDone, WITHIN_S)
            assert node.stopped.empty()
            await node.unload("i")
            assert not node.stopped.empty()

    with running_hub(A) as hub:
        asyncio.run(test())


def test_record_says_how_stages_are_used_and_how_many_fit() -> None:
    held = Instance("i", CARD.id, 1, (PlacedStage(A, WHOLE, f"{A}/engine-1"),), A)
    load = EngineLoad("numpy", "i", 1, WHOLE, "model", A, RecordNumber(1, 1), kv_bytes=MEMORY // 4)

    async def test() -> None:
        async with AsyncExitStack() as stack:
            engine = await stack.enter_async_context(client(hub.run_dir, A, "engine-1"))
            state = EngineState(load, held, idle_s=7, private_bytes=MEMORY // 8)
            stack.callback(asyncio.create_task(play(engine, holding(state))).cancel)
            await registered(engine)
            observer = await stack.enter_async_context(client(hub.run_dir, A, "observer", NodeRecorded))
            await stack.enter_async_context(running_node(hub.run_dir, engines=(), max_stages=3))
            record, _ = await next_message(observer, NodeRecorded)
            while not record.uses:
                record, _ = await next_message(observer, NodeRecorded)
            assert record.uses == (StageUse("i", 7, MEMORY // 8 + MEMORY // 4),)
            offered = record.record.capabilities
            assert (offered.memory_available, offered.stages_left) == (MEMORY - MEMORY // 8 - MEMORY // 4, 2)

    with running_hub(A) as hub:
        asyncio.run(test())


def test_stage_that_never_joined_ends_with_its_placer() -> None:
    async def test() -> None:
        async with running_node(one.run_dir) as node, client(two.run_dir, B, "placer") as placer:
            await link(node.asker, two.join_endpoint)
            await node.load("ours", WHOLE)
            await placer.request(f"{A}/node", ShardLoad("theirs", 1, PART, LATER), ShardLoaded, WITHIN_S)
            two.stop()
            assert await asyncio.wait_for(node.stopped.get(), WITHIN_S) == "engine-1"
            await node.unload("theirs")
            assert node.stopped.empty()
            await node.unload("ours")
            assert not node.stopped.empty()

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


def test_loading_stage_ends_with_its_placer() -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            node = await stack.enter_async_context(running_node(one.run_dir, engines=()))
            engine = await stack.enter_async_context(client(one.run_dir, A, "engine-2"))
            placer = await stack.enter_async_context(client(two.run_dir, B, "placer"))
            node.engine = engine.name
            await link(node.asker, two.join_endpoint)
            await placer.send(f"{A}/node", ShardLoad("theirs", 1, PART, LATER))
            await next_message(engine, EngineLoad)
            two.stop()
            assert await asyncio.wait_for(node.stopped.get(), WITHIN_S) == engine.name

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


def test_stage_ends_once_its_placer_no_longer_places_it() -> None:
    async def test() -> None:
        async with running_node(one.run_dir) as node, client(two.run_dir, B, "node") as placer:
            await link(node.asker, two.join_endpoint)
            load = ShardLoad("theirs", 1, PART, RecordNumber(1, 2))
            await placer.request(f"{A}/node", load, ShardLoaded, WITHIN_S)
            stopped = asyncio.create_task(node.stopped.get())
            while not stopped.done():  # facts may be lost, so a node repeats its record
                await placer.publish(NodeRecorded(NodeRecord(B, "bob", 1, 3)))
                await asyncio.wait([stopped], timeout=0.25)
            assert stopped.result() == "engine-1"

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(asyncio.wait_for(test(), WITHIN_S))


def test_restarted_node_actor_takes_over_its_stages() -> None:
    held = Instance("i", CARD.id, 1, (PlacedStage(A, WHOLE, f"{A}/engine-1"),), A)

    async def test() -> None:
        async with AsyncExitStack() as stack:
            engine = await stack.enter_async_context(client(hub.run_dir, A, "engine-1"))
            stray = await stack.enter_async_context(client(hub.run_dir, A, "engine-2"))
            load = EngineLoad("numpy", "i", 1, WHOLE, "model", A, RecordNumber(1, 1))
            for bus, state in ((engine, EngineState(load, held)), (stray, EngineState())):
                stack.callback(asyncio.create_task(play(bus, holding(state))).cancel)
                await registered(bus)
            observer = await stack.enter_async_context(client(hub.run_dir, A, "observer", NodeRecorded))
            node = await stack.enter_async_context(running_node(hub.run_dir, engines=()))
            assert await asyncio.wait_for(node.stopped.get(), WITHIN_S) == "engine-2"
            record, _ = await next_message(observer, NodeRecorded)
            while not record.instances:
                record, _ = await next_message(observer, NodeRecorded)
            assert record.instances == (held,)
            assert node.stopped.empty()

    with running_hub(A) as hub:
        asyncio.run(test())


def holding(state: EngineState) -> Answers:
    return {EngineDescribe: lambda _: state}


async def registered(bus: BusClient) -> None:
    """Wait until the hub knows an actor."""
    await described(bus, lambda state: bus.name in [known.name for known in state.actors])
