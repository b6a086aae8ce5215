"""Finds room for a model: a plan of its stages, if necessary after idle instances of other models have ended.

Which ones end is decided by `cluster.room`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec

from bus.client import BusClient
from bus.messages import Status
from cluster.instances import Instances
from cluster.placement import DoesNotFit, Instance
from cluster.room import InstanceUse, LoadedInstance, can_place, changed, empty, to_end
from cluster.topology import Topology
from engines.cuts import ModelPlan
from models.card import ModelCard
from models.weights.memory import least_bytes

WAIT_S = 8.0  # for an instance in use to become idle, before a request is refused
LOADING_S = 120.0  # the most that a request waits for other models that are being loaded
LOOK_EVERY_S = 0.1
SETTLE_S = 3.0  # by then every node's record shows the memory that an unloaded stage has freed

Plan = Callable[[ModelCard, Topology], ModelPlan]
"""Divides a model over the nodes of a topology. Raises DoesNotFit."""


class Room:
    """Plans models, one at a time, so that two models do not count on the same memory.

    The stages of a plan are claimed until `release`: other plans of this node leave them their memory, which no record
    shows yet. `end_idle` ends an instance unless it has a session, and returns whether it did.
    """

    def __init__(
        self,
        bus: BusClient,
        instances: Instances,
        current_topology: Callable[[ModelCard], Awaitable[Topology]],
        plan: Plan,
        end_idle: Callable[[Instance, str], Awaitable[bool]],
    ) -> None:
        self._bus = bus
        self._instances = instances
        self._current_topology = current_topology
        self._plan = plan
        self._end_idle = end_idle
        self._lock = asyncio.Lock()
        self._claims: dict[str, tuple[ModelCard, ModelPlan]] = {}  # by model id

    async def find(self, card: ModelCard, until: float) -> ModelPlan:
        """Return the plan of a model, which it claims. Waits till the monotonic time `until` if that may help.

        It may help if what stands is in use now. While other models are being loaded, `until` moves on, so that the one
        that was unloaded for another gets its turn. Raises DoesNotFit with what is loaded, and RequestError.
        """
        waits, latest = False, time.monotonic() + LOADING_S
        while True:
            async with self._lock:
                try:
                    return await self._claim(card)
                except DoesNotFit as error:
                    refusal = error
                if planned := await self._make(card):
                    return planned
            if self._instances.placing():
                until = max(until, min(time.monotonic() + WAIT_S, latest))
            may_come = await self._may_come(card)
            if not may_come or time.monotonic() >= until:
                raise DoesNotFit(f"{refusal}{_loaded(self._instances.loaded(), may_come=may_come)}")
            if not waits:
                waits = True
                await self._bus.publish(Status(card.id, f"waiting until other models leave {card.id} room"))
            await asyncio.sleep(LOOK_EVERY_S)

    def release(self, card: ModelCard) -> None:
        """End the claim of a model: records show its memory, or it could not be loaded."""
        self._claims.pop(card.id, None)

    async def _claim(self, card: ModelCard) -> ModelPlan:
        planned = self._plan(card, await self._unclaimed(card))
        self._claims[card.id] = card, planned
        return planned

    async def _make(self, card: ModelCard) -> ModelPlan | None:
        """End idle instances, as few as needed, and return the plan; none if that is not enough."""
        chosen = to_end(await self._unclaimed(card), self._instances.loaded(), partial(self._fits, card))
        if chosen is None:
            return None
        for instance, _ in chosen:
            if not await self._end_idle(instance, f"it was idle, and {card.id} needs its memory"):
                return None
        settled = time.monotonic() + SETTLE_S
        while True:
            try:
                return await self._claim(card)
            except DoesNotFit:
                if time.monotonic() >= settled:
                    return None
            await asyncio.sleep(LOOK_EVERY_S)

    async def _may_come(self, card: ModelCard) -> bool:
        """Return whether there would be room if nothing were in use.

        What a stage frees that is being loaded or joined just now is not known: then all memory counts as free.
        """
        idle = [LoadedInstance(one, msgspec.structs.replace(use, idle_s=1)) for one, use in self._instances.loaded()]
        topology = await self._current_topology(card)
        if self._instances.placing() or any(not all(use.frees) for _, use in idle):
            return self._fits(card, empty(topology))
        return to_end(topology, idle, partial(self._fits, card)) is not None

    def _fits(self, card: ModelCard, topology: Topology) -> bool:
        return can_place(partial(self._plan, card), topology)

    async def _unclaimed(self, card: ModelCard) -> Topology:
        """Return the nodes as they are now, without what the plans of other models have claimed."""
        topology = await self._current_topology(card)
        memory: Counter[str] = Counter()
        stages: Counter[str] = Counter()
        for claimed, planned in self._claims.values():
            for stage in planned.stages if claimed.id != card.id else ():
                if node := topology.node(stage.node_id):
                    need = least_bytes(claimed, stage.shard, node.capabilities, auto_bits=planned.auto_bits)
                    memory[stage.node_id] -= need
                    stages[stage.node_id] -= 1
        return changed(topology, memory, stages)


def _loaded(instances: tuple[LoadedInstance, ...], *, may_come: bool) -> str:
    """Return what is loaded, and whether to wait for it, as the end of a sentence."""
    names = [f"{one.model_id} ({_since(use)})" for one, use in instances]
    advice = "; it may fit once they are idle, so try again then" if may_come else ""
    return f"; loaded now: {', '.join(names)}{advice}" if names else ""


def _since(use: InstanceUse) -> str:
    return f"idle for {use.idle_s} s" if use.idle_s else "in use"
