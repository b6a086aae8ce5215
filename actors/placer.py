"""Carries out placements: load every shard, connect the ring, replace an instance when the ring should grow.

What goes where is `cluster.placement`'s decision; here are the requests that make it so.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from bus.address import Address
from bus.client import BusClient, RequestError
from bus.dataplane.access import node_at
from bus.messages import (
    InstanceDown,
    InstanceFailed,
    InstanceUp,
    RequestDone,
    ShardLoad,
    ShardLoaded,
    ShardUnload,
    StageJoin,
    Status,
)
from cluster.failures import FailureCode
from cluster.instances import Instances
from cluster.partitioning import PartitioningStrategy
from cluster.placement import DoesNotFit, Instance, PlacedStage, able, plan
from cluster.topology import Topology
from models.card import ModelCard

logger = logging.getLogger(__name__)

LOAD_WITHIN_S = 3600.0  # a first download may take that long
DRAIN_WITHIN_S = 600.0
JOIN_WITHIN_S = 10.0


class Placer:
    """Places models one at a time each. `look` gives the topology as it is now."""

    def __init__(
        self,
        bus: BusClient,
        instances: Instances,
        strategy: PartitioningStrategy,
        look: Callable[[], Awaitable[Topology]],
    ) -> None:
        self._bus = bus
        self._instances = instances
        self._strategy = strategy
        self._look = look
        self._placing: dict[str, asyncio.Lock] = {}

    async def ensure(self, card: ModelCard) -> Instance:
        """The standing instance, or a new one. Raises RequestError: what failed, in a sentence."""
        async with self._placing.setdefault(card.id, asyncio.Lock()):
            return await self._standing(card)

    async def _standing(self, card: ModelCard) -> Instance:
        """A standing instance is kept unless a node that should be in its ring is not."""
        held = self._instances.of_model(card.id)
        topology = await self._look()
        members = able(topology, card.id, card.n_layers, card.least_bytes)
        wanted = {part.node_id for part in self._strategy.partition(members, card.n_layers)}
        if held is not None and wanted <= set(held.node_ids):
            return held
        return await self._replace(card, held, topology)

    async def _replace(self, card: ModelCard, held: Instance | None, topology: Topology) -> Instance:
        """Beside the old instance where memory allows it, else after its end."""
        try:
            stages = self._plan(card, topology)
        except DoesNotFit as error:
            if held is None:
                raise RequestError(FailureCode.INSUFFICIENT_MEMORY, str(error)) from None
            await self._retire(held)
            return await self._replace(card, None, await self._look())
        instance = await self._place(card, stages)
        if held is not None:
            await self._retire(held)
        return instance

    def _plan(self, card: ModelCard, topology: Topology) -> tuple[PlacedStage, ...]:
        return plan(topology, self._strategy, card.id, card.n_layers, card.least_bytes, card.head_layers)

    async def _place(self, card: ModelCard, stages: tuple[PlacedStage, ...]) -> Instance:
        """Load all shards at once, then connect. On a failure nothing stays loaded."""
        instance_id, epoch = secrets.token_hex(8), self._instances.next_epoch(card.id)
        await self._bus.publish(Status(card.id, f"placing {card.id} on {len(stages)} node{'s' * (len(stages) > 1)}"))
        loads = [self._load(stage, instance_id, epoch) for stage in stages]
        planned = Instance(instance_id, card.id, epoch, stages, self._bus.node_id)
        try:
            results = await asyncio.gather(*loads, return_exceptions=True)
            instance = msgspec.structs.replace(planned, stages=_all_loaded(results))
            await self._join(instance)
        except BaseException as error:  # the asker may also have gone, while some members are done and some are not
            await asyncio.shield(self._unload(planned))
            if isinstance(error, RequestError):
                await self._bus.publish(InstanceFailed(card.id, error.code, error.message))
            raise
        self._instances.stands(instance)
        await self._bus.publish(InstanceUp(instance))
        return instance

    async def _load(self, stage: PlacedStage, instance_id: str, epoch: int) -> PlacedStage:
        work = ShardLoad(instance_id, epoch, stage.shard)
        loaded = await self._bus.request(f"{stage.node_id}/node", work, ShardLoaded, LOAD_WITHIN_S)
        _check_answer(stage.node_id, loaded)
        return PlacedStage(
            stage.node_id,
            stage.shard,
            loaded.actor,
            loaded.engine,
            loaded.endpoints,
            loaded.positions,
            loaded.exact_rows,
        )

    async def _join(self, instance: Instance) -> None:
        join = StageJoin(instance)
        await asyncio.gather(
            *(self._bus.request(stage.actor, join, RequestDone, JOIN_WITHIN_S) for stage in instance.stages)
        )

    async def _retire(self, instance: Instance) -> None:
        """End an instance once its sessions are over."""
        self._instances.fell(instance.instance_id)
        await self._unload(instance)
        await self._bus.publish(InstanceDown(instance.instance_id, instance.epoch, "it was replaced"))

    async def _unload(self, instance: Instance) -> None:
        """The first stage before the others: once it is empty, no opening is on its way to them."""
        for stages in (instance.stages[:1], instance.stages[1:]):
            await asyncio.gather(*(self._unload_stage(instance, stage) for stage in stages))

    async def _unload_stage(self, instance: Instance, stage: PlacedStage) -> None:
        work = ShardUnload(instance.instance_id, instance.epoch)
        try:
            await self._bus.request(f"{stage.node_id}/node", work, RequestDone, DRAIN_WITHIN_S)
        except RequestError as error:
            logger.warning("%s could not be unloaded: %s", stage.shard, error.message)


def _check_answer(node_id: str, loaded: ShardLoaded) -> None:
    """A member may lend the ring no process and no end point but its own. Raises RequestError."""
    if Address.parse(loaded.actor).node != node_id:
        raise RequestError(FailureCode.LOAD_FAILED, f"node {node_id} names another node's engine, {loaded.actor}")
    try:
        others = {node_at(endpoint) for endpoint in loaded.endpoints} - {"", node_id}
    except ValueError as error:
        raise RequestError(FailureCode.LOAD_FAILED, f"node {node_id} loaded its shard, but {error}") from None
    if others or not loaded.endpoints:
        raise RequestError(FailureCode.LOAD_FAILED, f"node {node_id} names no end point of its own")


def _all_loaded(results: Sequence[PlacedStage | BaseException]) -> tuple[PlacedStage, ...]:
    """The stages, all of them. Raises the first failure."""
    stages = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        stages.append(result)
    return tuple(stages)
