"""Carries out placements: loads every shard, connects the ring, and replaces an instance if its ring should grow.

Where layers go is decided by `cluster.placement`, and `actors.placing.room` makes room for them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

import msgspec

from actors.placing.room import SETTLE_S, WAIT_S, Room
from actors.placing.unloading import Unloading
from bus.address import Address
from bus.client import BusClient, RequestError
from bus.dataplane.access import node_at
from bus.messages import (
    InstanceFailed,
    InstanceJoin,
    InstanceJoined,
    InstanceUp,
    ShardLoad,
    ShardLoaded,
    Status,
)
from cluster.failures import FailureCode
from cluster.instances import Instances
from cluster.partitioning import PartitioningStrategy
from cluster.placement import DoesNotFit, Instance, PlacedStage, larger_ring
from cluster.room import can_grow
from cluster.topology import RecordNumber, Topology
from engines.cuts import WHOLE, ModelPlan, plan_model, stage_starts
from models.card import ModelCard, travelling
from models.weights.memory import AUTO_BITS, least_bytes

logger = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 3600.0  # a first download may take that long
JOIN_TIMEOUT_S = 10.0
REPLACED = "it was replaced"
TAKEN_S = 0.5  # by then the record of a node shows that another placer has taken its memory
STOP_TIMEOUT_S = 1.0  # for requests to unload to leave; other actors of this node may have ended
GROW_AGAIN_S = 300.0  # after a failed attempt to grow a ring to the same nodes


class Placer:
    """Places models, one placement of a model at a time.

    `current_topology` returns the nodes as they are now, `able` those of them that can have a model's files and run it,
    `next_record` the number of the node's next record, and `fingerprint` that of an own model's files.
    """

    def __init__(
        self,
        bus: BusClient,
        instances: Instances,
        unloading: Unloading,
        strategy: PartitioningStrategy,
        current_topology: Callable[[ModelCard], Awaitable[Topology]],
        able: Callable[[Topology, ModelCard], Topology],
        next_record: Callable[[], RecordNumber],
        fingerprint: Callable[[ModelCard], str],
    ) -> None:
        self.placing: set[str] = set()  # ids of instances; the node's record lists them
        self._bus = bus
        self._instances = instances
        self._strategy = strategy
        self._current_topology = current_topology
        self._able = able
        self._unloading = unloading
        self._room = Room(bus, instances, current_topology, self._plan, unloading.end_idle)
        self._next_record = next_record
        self._fingerprint = fingerprint
        self._locks: dict[str, asyncio.Lock] = {}
        self._growing: dict[str, asyncio.Task[None]] = {}
        self._whole: set[str] = set()  # ids of models of which an engine refused a part
        # by model id: the nodes of a growth that failed, and when it was
        self._attempts: dict[str, tuple[frozenset[str], float]] = {}

    async def ensure(self, card: ModelCard) -> Instance:
        """Return the standing instance, or place one. Raises RequestError with what failed.

        A standing instance is returned at once, also while a larger one is being placed beside it. A model of which an
        engine refuses a part is placed whole.
        """
        if held := self._standing(card):
            return held
        async with self._lock(card):
            if held := self._standing(card):
                return held
            try:
                return await self._place_in_room(card)
            except RequestError as error:
                if error.code is not FailureCode.NOT_IN_PARTS:
                    raise
            return await self._place_in_room(card)  # now whole

    def _standing(self, card: ModelCard) -> Instance | None:
        held = self._instances.newest(card.id)
        return None if held and held.instance_id in self._unloading.retiring else held

    def grow(self, card: ModelCard, topology: Topology) -> bool:
        """Begin to replace what stands of a model, if there are nodes that its ring should also have.

        An older instance beside the newest is ended, too: two nodes that disagreed for a moment may each have placed
        one. Returns whether it begins; the rest happens in the background. Does nothing while the model is being
        placed, or if a growth to the same nodes failed not long ago.
        """
        held = self._instances.newest(card.id)
        if held is None or card.id in self._growing or self._lock(card).locked():
            return False
        if not self._instances.older(card.id) and not self._larger_ring(card, topology, held):
            return False
        task = asyncio.create_task(self._grow(card))
        self._growing[card.id] = task
        task.add_done_callback(lambda _: self._growing.pop(card.id))
        return True

    async def stop(self) -> None:
        """Cancel the growth of all rings; shards that were loaded for it are unloaded."""
        for task in (tasks := list(self._growing.values())):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_TIMEOUT_S)

    async def _grow(self, card: ModelCard) -> None:
        """Place a larger ring, if one is still wanted once the topology is known, and end all older instances."""
        async with self._lock(card):
            try:
                topology = await self._current_topology(card)
                held = self._instances.newest(card.id)
                if held and (wanted := self._larger_ring(card, topology, held)):
                    self._attempts[card.id] = wanted, time.monotonic()
                    placed = await self._replace(card, held, topology)
                    if wanted <= set(placed.node_ids):
                        del self._attempts[card.id]  # a node that leaves and comes back gets layers at once
                for older in self._instances.older(card.id):
                    await self._unloading.end(older, REPLACED)
            except RequestError as error:
                logger.warning("the ring of %s does not grow: %s", card.id, error.message)

    def _larger_ring(self, card: ModelCard, topology: Topology, held: Instance) -> frozenset[str]:
        """Return the nodes of the ring that is wanted now, unless a growth to it failed not long ago."""
        able = self._able(topology, card)
        need = partial(least_bytes, card, auto_bits=AUTO_BITS[0])
        wanted = larger_ring(able, self._strategy, held, card.n_layers, need, self._starts(card, able))
        tried, when = self._attempts.get(card.id, (frozenset(), 0.0))
        return frozenset() if wanted == tried and time.monotonic() - when < GROW_AGAIN_S else wanted

    async def _replace(self, card: ModelCard, held: Instance, topology: Topology) -> Instance:
        """Place a larger ring beside an instance if memory allows it with as many bits, else after its end.

        Returns the instance itself if its end would not make room for a larger one.
        """
        bits = max(stage.quantized_bits for stage in held.stages)
        with suppress(DoesNotFit):
            planned = self._plan(card, topology)
            if len(planned.stages) > len(held.stages) and planned.auto_bits >= bits:
                return await self._place(card, planned)
        uses = (one for one in self._instances.loaded() if one.instance == held)
        if not all(can_grow(topology, one, partial(self._stages_on, card)) for one in uses):
            return held
        await self._unloading.end(held, REPLACED)
        await asyncio.sleep(SETTLE_S)
        return await self._place(card, self._plan_or_repeat(card, await self._current_topology(card), held))

    def _plan(self, card: ModelCard, topology: Topology) -> ModelPlan:
        able = self._able(topology, card)
        return plan_model(card, able, self._strategy, self._starts(card, able))

    def _stages_on(self, card: ModelCard, topology: Topology) -> int:
        try:
            return len(self._plan(card, topology).stages)
        except DoesNotFit:
            return 0

    def _starts(self, card: ModelCard, topology: Topology) -> Sequence[int]:
        return WHOLE if card.id in self._whole else stage_starts(card, topology)

    def _plan_or_repeat(self, card: ModelCard, topology: Topology, held: Instance) -> ModelPlan:
        """Return a plan, or the placement of an instance that has just ended: its nodes had room for that."""
        try:
            return self._plan(card, topology)
        except DoesNotFit:
            stages = tuple(PlacedStage(stage.node_id, stage.shard) for stage in held.stages)
            used = {stage.quantized_bits for stage in held.stages}
            return ModelPlan(stages, min((bits for bits in AUTO_BITS if bits in used), default=0))

    def _lock(self, card: ModelCard) -> asyncio.Lock:
        return self._locks.setdefault(card.id, asyncio.Lock())

    async def _place_in_room(self, card: ModelCard) -> Instance:
        """Place a model, once more if another node's placer took the room. Raises RequestError."""
        until = time.monotonic() + WAIT_S
        while True:
            try:
                return await self._place(card, await self._room.find(card, until))
            except DoesNotFit as error:
                raise RequestError(FailureCode.INSUFFICIENT_MEMORY, str(error)) from None
            except RequestError as error:
                if error.code is not FailureCode.INSUFFICIENT_MEMORY or time.monotonic() >= until:
                    raise
            finally:
                self._room.release(card)
            await asyncio.sleep(TAKEN_S)

    async def _place(self, card: ModelCard, planned: ModelPlan) -> Instance:
        """Load all shards at once, then connect the ring. On a failure nothing stays loaded."""
        stages, auto_bits = planned
        instance_id, epoch = secrets.token_hex(8), self._instances.next_epoch(card.id)
        await self._bus.publish(Status(card.id, f"placing {card.id} on {len(stages)} node{'s' * (len(stages) > 1)}"))
        wanted = Instance(instance_id, card.id, epoch, stages, self._bus.node_id)
        requested = self._next_record()
        self.placing.add(instance_id)
        sent = travelling(card), self._fingerprint(card)
        loads = [
            self._load(stage, ShardLoad(instance_id, epoch, stage.shard, requested, *sent, auto_bits=auto_bits))
            for stage in stages
        ]
        try:
            # Every load runs to its end, also after one has failed: a stage that is still loading cannot be unloaded.
            results = await asyncio.gather(*loads, return_exceptions=True)
            instance = msgspec.structs.replace(wanted, stages=_all_loaded(results))
            numbers = await asyncio.gather(*(self._join(stage.node_id, instance) for stage in stages))
        except BaseException as error:  # a cancellation, too, may come when some members have loaded and some have not
            await asyncio.shield(self._unloading.unload(wanted))
            if isinstance(error, RequestError):
                if error.code is FailureCode.NOT_IN_PARTS:
                    self._whole.add(card.id)
                await self._bus.publish(InstanceFailed(card.id, error.code, error.message))
            raise
        finally:
            self.placing.discard(instance_id)
        self._instances.announce(instance, tuple(numbers))
        await self._bus.publish(InstanceUp(instance, tuple(numbers)))
        return instance

    async def _join(self, node_id: str, instance: Instance) -> RecordNumber:
        work = InstanceJoin(instance)
        return (await self._bus.request(f"{node_id}/node", work, InstanceJoined, JOIN_TIMEOUT_S)).number

    async def _load(self, stage: PlacedStage, work: ShardLoad) -> PlacedStage:
        loaded = await self._bus.request(f"{stage.node_id}/node", work, ShardLoaded, LOAD_TIMEOUT_S)
        _check_own(stage.node_id, loaded)
        return PlacedStage(
            stage.node_id,
            stage.shard,
            loaded.actor,
            loaded.engine,
            loaded.endpoints,
            loaded.positions,
            loaded.exact_rows,
            loaded.saves,
            loaded.quantized_bits,
            loaded.why,
        )


def _check_own(node_id: str, loaded: ShardLoaded) -> None:
    """Check that a member offers a process and endpoints of its own. Raises RequestError if it does not."""
    if Address.parse(loaded.actor).node != node_id:
        raise RequestError(FailureCode.LOAD_FAILED, f"node {node_id} names another node's engine, {loaded.actor}")
    try:
        others = {node_at(endpoint) for endpoint in loaded.endpoints} - {"", node_id}
    except ValueError as error:
        raise RequestError(FailureCode.LOAD_FAILED, f"node {node_id} loaded its shard, but {error}") from None
    if others or not loaded.endpoints:
        raise RequestError(FailureCode.LOAD_FAILED, f"node {node_id} names no endpoint of its own")


def _all_loaded(results: Sequence[PlacedStage | BaseException]) -> tuple[PlacedStage, ...]:
    """Return the stages. Raises the first failure, if any."""
    stages = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        stages.append(result)
    return tuple(stages)
