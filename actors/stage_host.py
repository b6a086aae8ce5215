"""The stages that this node holds: one engine process each, with a share of the node's memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from actors.device import Device
from bus.client import BusClient, RequestError
from bus.messages import (
    ActorStart,
    ActorStarted,
    ActorStop,
    DownloadDone,
    DownloadWant,
    EngineLoad,
    RequestDone,
    ShardLoad,
    ShardLoaded,
    StageDrain,
    Status,
)
from cluster.failures import FailureCode
from cluster.kv_budget import KvBudget, KvRequest
from common.config import NodeConfig
from engines.settings import MAX_SLOTS
from models.card import ModelCard

LOAD_TIMEOUT_S = 3600.0  # a first download may take that long
DRAIN_TIMEOUT_S = 600.0
ENGINE_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


class StageHost:
    """Loads, drains and ends stages, with the help of the node's supervisor and download actor."""

    def __init__(self, config: NodeConfig, bus: BusClient, device: Device) -> None:
        self._config = config
        self._bus = bus
        self._device = device
        self._engines: dict[str, str] = {}  # by instance id
        self._placers: dict[str, str] = {}  # by instance id: the node that requested the stage
        self._loading: set[str] = set()  # instance ids
        self._draining: dict[str, asyncio.Lock] = {}  # by instance id
        self._budget = KvBudget()

    async def load(self, work: ShardLoad, card: ModelCard, nodes_here: int, placer: str) -> ShardLoaded:
        """Fetch a shard's files and meanwhile start an engine for it, then load. Raises RequestError.

        `nodes_here` nodes share this machine. The node `placer` requested the stage.
        """
        self._placers[work.instance_id] = placer
        self._loading.add(work.instance_id)
        try:
            return await self._load(work, card, nodes_here)
        except BaseException:
            self._placers.pop(work.instance_id, None)
            raise
        finally:
            self._loading.discard(work.instance_id)

    async def _load(self, work: ShardLoad, card: ModelCard, nodes_here: int) -> ShardLoaded:
        engine_name = (await self._device.measured()).engine
        files, engine = await self._fetch_and_start(work, self._device.threads(nodes_here))
        self._engines[work.instance_id] = engine
        await self._bus.publish(Status(work.shard.model_id, f"loading {work.shard} on {self._config.name}"))
        try:
            kv_bytes = self._reserve(work, card, self._device.now(nodes_here).memory_available)
            load = EngineLoad(engine_name, work.epoch, work.shard, files, kv_bytes, self._config.precision)
            loaded = await self._bus.request(engine, load, ShardLoaded, LOAD_TIMEOUT_S)
            if work.instance_id not in self._placers:
                raise RequestError(FailureCode.UNREACHABLE, f"the node that requested {work.shard} is gone")
        except BaseException:
            await asyncio.shield(self.end(work.instance_id))
            raise
        self._budget.loaded(work.instance_id)
        return loaded

    async def drain(self, instance_id: str) -> None:
        """Wait until the sessions of a stage are over, then end it. Raises RequestError.

        An engine is drained once, though two placers that disagreed for a moment may both ask for it.
        """
        try:
            async with self._draining.setdefault(instance_id, asyncio.Lock()):
                if engine := self._engines.get(instance_id):
                    await self._bus.request(engine, StageDrain(), RequestDone, DRAIN_TIMEOUT_S)
                    await self.end(instance_id)
        finally:
            self._draining.pop(instance_id, None)

    async def end(self, instance_id: str) -> None:
        """End a stage's process, if there is one. Raises RequestError."""
        if engine := self._forget(instance_id):
            await self._stop_engine(engine)

    async def placer_lost(self, node_id: str, is_up: Callable[[str], bool]) -> None:
        """End the stages of a lost placer that belong to no standing instance: no other node would ever unload them.

        One that is still loading ends as soon as it is loaded. Raises RequestError.
        """
        for instance_id in [instance_id for instance_id, placer in self._placers.items() if placer == node_id]:
            if is_up(instance_id) or instance_id in self._draining:
                continue
            del self._placers[instance_id]
            if instance_id not in self._loading:
                await self.end(instance_id)

    def engine_ended(self, engine: str) -> list[str]:
        """Forget the stage of an engine that has ended; returns the ids of the instances that it belonged to."""
        lost = [instance_id for instance_id, name in self._engines.items() if name == engine]
        for instance_id in lost:
            self._forget(instance_id)
        return lost

    def _reserve(self, work: ShardLoad, card: ModelCard, available: int) -> int:
        """Return the bytes that a stage may use for keys and values; at most what MAX_SLOTS whole contexts take."""
        shard = work.shard
        most = card.kv_bytes(shard, MAX_SLOTS * card.context_length)
        request = KvRequest(card.shard_bytes(shard), card.least_kv_bytes(shard), most, self._config.kv_memory)
        return self._budget.reserve(work.instance_id, card.id, request, available)

    async def _fetch_and_start(self, work: ShardLoad, threads: int) -> tuple[str, str]:
        """Return the path of a shard's files and the name of a fresh engine; if the files fail, the engine ends."""
        want, start = DownloadWant(work.shard.model_id, work.shard), ActorStart(threads)
        starting = asyncio.create_task(self._bus.request("supervisor", start, ActorStarted, ENGINE_TIMEOUT_S))
        try:
            files = await self._bus.request("download", want, DownloadDone, LOAD_TIMEOUT_S)
            return files.path, (await asyncio.shield(starting)).name
        except BaseException:
            await asyncio.shield(self._stop_unused(starting))
            raise

    async def _stop_unused(self, starting: asyncio.Task[ActorStarted]) -> None:
        """End an engine once it has started, if it does."""
        with suppress(RequestError):
            await self._stop_engine((await starting).name)

    def _forget(self, instance_id: str) -> str | None:
        self._budget.release(instance_id)
        self._placers.pop(instance_id, None)
        return self._engines.pop(instance_id, None)

    async def _stop_engine(self, engine: str) -> None:
        # A hub that was just started again may not know the supervisor yet.
        await self._bus.request_at_start("supervisor", ActorStop(engine), RequestDone, STOP_TIMEOUT_S)
