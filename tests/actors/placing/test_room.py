"""`actors.placing.room`: what ends before a model is planned, what is claimed, and what a refusal says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from actors.placing import room as room_module
from actors.placing.room import Room
from bus.client import BusClient
from cluster.capabilities import DeviceCapabilities
from cluster.instances import Instances
from cluster.partitioning import RingMemoryWeightedPartitioningStrategy
from cluster.placement import DoesNotFit, Instance, PlacedStage
from cluster.room import StageUse
from cluster.shard import whole
from cluster.topology import NodeRecord, RecordNumber, Topology
from engines.cuts import ModelPlan, plan_model
from models.card import ModelCard
from models.catalogue import DEFAULT_MODEL, Catalogue
from models.weights.memory import least_bytes
from tests.support.actors import A
from tests.support.bus import WITHIN_S, client, running_hub

CARD, LARGE = Catalogue.load().get(DEFAULT_MODEL), Catalogue.load().get("smollm2-360m")


def need(card: ModelCard) -> int:
    return least_bytes(card, whole(card.id, card.n_layers), DeviceCapabilities())


class Node:
    """A node with `free` bytes of memory and instances of other models, by id. A request finds those `used` in use.

    It is `placing` the instances of these ids.
    """

    def __init__(self, bus: BusClient, free: int) -> None:
        self.free = free
        self.instances = Instances(A)
        self.room = Room(bus, self.instances, self.look, self.plan, self.end_idle)
        self.used: set[str] = set()
        self.asked: list[str] = []  # to end
        self.placing: tuple[str, ...] = ()
        self._frees: dict[str, StageUse] = {}

    def hold(self, name: str, idle_s: int, frees: int) -> None:
        """Hold an instance, or change its use."""
        self._frees[name] = StageUse(name, idle_s, frees)
        self._record()

    def _record(self) -> None:
        held = [Instance(name, name, 1, (PlacedStage(A, whole(name, 1)),)) for name in self._frees]
        self.instances.record(A, RecordNumber(1, 1), held, self.placing, self._frees.values())

    async def look(self, card: ModelCard) -> Topology:
        offered = DeviceCapabilities(memory_available=self.free, memory_total=need(CARD))
        return Topology().with_node(NodeRecord(A, "ada", 1, 1, offered))

    def plan(self, card: ModelCard, topology: Topology) -> ModelPlan:
        return plan_model(card, topology, RingMemoryWeightedPartitioningStrategy(), range(card.n_layers))

    async def end_idle(self, instance: Instance, reason: str) -> bool:
        self.asked.append(instance.instance_id)
        if instance.instance_id in self.used:
            return False
        self.free += self._frees.pop(instance.instance_id).frees
        self._record()
        return True

    async def find(self, card: ModelCard = CARD, wait_s: float = 0.0) -> ModelPlan:
        return await asyncio.wait_for(self.room.find(card, time.monotonic() + wait_s), WITHIN_S)


def on_node(test: Callable[[Node], Awaitable[None]], free: int = 0) -> None:
    """Run a test on a node with so much free memory."""

    async def main() -> None:
        async with client(hub.run_dir, A, "placer") as bus:
            await test(Node(bus, free))

    with running_hub(A) as hub:
        asyncio.run(main())


def test_least_recently_used_model_gives_way() -> None:
    async def test(node: Node) -> None:
        for name, idle_s in (("new", 5), ("old", 50), ("used", 0)):
            node.hold(name, idle_s, need(CARD))
        ((stage,), _) = await node.find()
        assert stage == PlacedStage(A, whole(CARD.id, CARD.n_layers))
        assert node.asked == ["old"]

    on_node(test)


def test_nothing_ends_if_it_would_not_be_enough() -> None:
    async def test(node: Node) -> None:
        node.hold("old", 50, need(CARD) // 4)
        node.hold("used", 0, need(CARD) // 4)
        with pytest.raises(
            DoesNotFit, match=r"smollm2-135m needs .*; loaded now: old \(idle for 50 s\), used \(in use\)"
        ):
            await node.find(wait_s=WITHIN_S)  # it waits for nothing, since that would not help
        assert node.asked == []

    on_node(test)


def test_model_that_got_a_session_in_time_stays() -> None:
    async def test(node: Node) -> None:
        node.hold("old", 50, need(CARD))
        node.used.add("old")
        with pytest.raises(DoesNotFit, match="loaded now: old"):
            await node.find()
        assert node.asked == ["old"]
        assert [one.instance.instance_id for one in node.instances.loaded()] == ["old"]

    on_node(test)


@pytest.mark.parametrize(
    ("frees", "placing", "wait_s"),
    [(need(CARD), (), WITHIN_S), (0, (), WITHIN_S), (0, ("other",), 0.0)],
    ids=["in use", "joined just now", "being loaded"],
)
def test_request_waits_for_a_model_to_become_idle(frees: int, placing: tuple[str, ...], wait_s: float) -> None:
    async def test(node: Node) -> None:
        node.placing = placing
        node.hold("other", 0, frees)
        finding = asyncio.create_task(node.find(wait_s=wait_s))
        await asyncio.wait([finding], timeout=3 * room_module.LOOK_EVERY_S)
        assert not finding.done()
        node.hold("other", 1, need(CARD))
        assert len((await finding).stages) == 1

    on_node(test)


def test_model_beyond_all_memory_waits_for_no_other() -> None:
    async def test(node: Node) -> None:
        node.placing = ("other",)
        node.hold("other", 0, 0)
        with pytest.raises(DoesNotFit, match="loaded now"):
            await node.find(LARGE, wait_s=WITHIN_S)

    on_node(test)


def test_two_models_do_not_count_on_the_same_memory() -> None:
    async def test(node: Node) -> None:
        await node.find(CARD)
        with pytest.raises(DoesNotFit):
            await node.find(LARGE)
        assert len((await node.find(CARD)).stages) == 1  # its own claim does not count
        node.room.release(CARD)
        assert len((await node.find(LARGE)).stages) == 1

    on_node(test, need(LARGE))


def test_memory_that_does_not_become_free_ends_one_model_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_module, "SETTLE_S", 0.0)

    async def test(node: Node) -> None:
        node.hold("old", 50, need(CARD))
        node.hold("new", 5, 1)
        node.free = -need(CARD)  # what is freed goes to another program
        with pytest.raises(DoesNotFit, match=r"loaded now: new"):
            await node.find()
        assert node.asked == ["old"]

    on_node(test)
