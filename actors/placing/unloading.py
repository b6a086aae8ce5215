"""Ends instances, by unloading their stages: replaced ones once their sessions are over, others only while idle.

When a replaced one ends is the placer's decision, and which idle ones end that of `cluster.room`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from bus.client import BusClient, RequestError
from bus.messages import InstanceDown, RequestDone, ShardUnload
from cluster.failures import FailureCode
from cluster.instances import Instances
from cluster.placement import Instance, PlacedStage

logger = logging.getLogger(__name__)

DRAIN_TIMEOUT_S = 600.0


class Unloading:
    """Unloads the stages of instances on any node. `retiring` has the ids of those that take no new sessions."""

    def __init__(self, bus: BusClient, instances: Instances) -> None:
        self.retiring: set[str] = set()
        self._bus = bus
        self._instances = instances

    async def end(self, instance: Instance, reason: str) -> bool:
        """End an instance once its sessions are over. Returns whether all of its stages were unloaded."""
        self.retiring.add(instance.instance_id)
        try:
            unloaded = await self.unload(instance)
        finally:
            self.retiring.discard(instance.instance_id)
        if unloaded:
            self._instances.end(instance.instance_id)
            await self._bus.publish(InstanceDown(instance.instance_id, instance.epoch, reason))
        return unloaded

    async def end_idle(self, instance: Instance, reason: str) -> bool:
        """End an instance, unless it has a session, of which its first stage alone knows. Returns whether it ended."""
        unloaded = await self._unload_stage(instance, instance.stages[0], if_idle=True)
        return unloaded and await self.end(instance, reason)

    async def end_unused(self, instance_ids: Collection[str], keep_s: int) -> None:
        """End those of the instances that were idle for `keep_s` seconds."""
        for instance, use in self._instances.loaded():
            if instance.instance_id in instance_ids and use.idle_s and use.idle_s >= keep_s:
                await self.end_idle(instance, f"it was idle for {use.idle_s} s")

    async def end_model(self, model_id: str) -> None:
        """End what stands of a model. Raises RequestError if nothing does, or if it is in use."""
        loaded = [instance for instance in self._instances.standing() if instance.model_id == model_id]
        if not loaded:
            raise RequestError(FailureCode.MODEL_NOT_FOUND, f"{model_id} is not loaded; see `exobus models ls`")
        ended = [await self.end_idle(instance, "it was unloaded by a command") for instance in loaded]
        if not all(ended):
            sentence = f"{model_id} is in use, or one of its nodes does not respond; try again in a moment"
            raise RequestError(FailureCode.BUSY, sentence)

    async def unload(self, instance: Instance) -> bool:
        """Unload the first stage before the others: once it is empty, no opening is on its way to them.

        Returns whether all were unloaded.
        """
        unloaded = []
        for stages in (instance.stages[:1], instance.stages[1:]):
            unloaded += await asyncio.gather(*(self._unload_stage(instance, stage) for stage in stages))
        return all(unloaded)

    async def _unload_stage(self, instance: Instance, stage: PlacedStage, *, if_idle: bool = False) -> bool:
        work = ShardUnload(instance.instance_id, instance.epoch, if_idle)
        try:
            await self._bus.request(f"{stage.node_id}/node", work, RequestDone, DRAIN_TIMEOUT_S)
        except RequestError as error:
            if error.code is not FailureCode.BUSY:
                logger.warning("%s could not be unloaded: %s", stage.shard, error.message)
            return False
        return True
