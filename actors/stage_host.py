"""The stages that this node holds: one engine process each, with a share of the node's memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from actors.device import Device
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
    HubActor,
    RequestDone,
    ShardLoad,
    ShardLoaded,
    StageDrain,
    StageJoin,
    Status,
)
from cluster.failures import FailureCode
from cluster.held_stages import HeldStage
from cluster.kv_budget import KvBudget, KvRequest
from cluster.placement import Instance
from cluster.room import StageUse
from common.config import NodeConfig
from common.machine import memory
from engines.choice import with_room
from engines.settings import MAX_SLOTS
from models.card import ModelCard, travelling
from models.weights.memory import AUTO_BITS, engine_bytes, rounded_to

logger = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 3600.0  # a first download may take that long
DRAIN_TIMEOUT_S = 600.0
ENGINE_TIMEOUT_S = 30.0
JOIN_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0
DESCRIBE_TIMEOUT_S = 2.0
STRAY_S = 3.0  # an engine that belongs to no stage for so long ends; one that starts registers before we hear of it
ENGINE_PREFIX = "engine-"


@dataclass(slots=True)
class _Stage:
    """A stage, and its engine once that runs."""

    held: HeldStage
    engine: str = ""
    use: StageUse | None = None  # as of the last look, once it has joined
    draining: asyncio.Lock = field(default_factory=asyncio.Lock)


class StageHost:
    """Loads, joins, drains and ends stages, with the help of the node's supervisor and download actor."""

    def __init__(self, config: NodeConfig, bus: BusClient, device: Device) -> None:
        self._config = config
        self._bus = bus
        self._device = device
        self._stages: dict[str, _Stage] = {}  # by instance id
        self._strays: dict[str, float] = {}  # engines that belong to no stage: since when
        self._budget = KvBudget()

    @property
    def held(self) -> tuple[HeldStage, ...]:
        """All stages, also those that are being loaded."""
        return tuple(stage.held for stage in self._stages.values())

    @property
    def reserved(self) -> int:
        """The bytes that all stages together may come to hold."""
        return self._budget.reserved()

    @property
    def uses(self) -> tuple[StageUse, ...]:
        """How the stages are used that have joined a ring, as far as that is known."""
        return tuple(stage.use for stage in self._stages.values() if stage.use)

    @property
    def joined(self) -> tuple[Instance, ...]:
        """The instances that have a stage here in its place in the ring."""
        return tuple(stage.held.joined for stage in self._stages.values() if stage.held.joined)

    async def adopt(self, engines: Sequence[HubActor]) -> None:
        """Take over the stages that the node actor before this one started; it has crashed.

        Their weights count as loaded: the request for one that is still loading is lost, so its placer gives it up.
        """
        names = [engine.name for engine in engines if engine.name.startswith(ENGINE_PREFIX)]
        for name, state in zip(names, await asyncio.gather(*map(self._describe, names)), strict=True):
            if state is None:
                logger.warning("%s does not say what it holds", name)
            elif load := state.load:
                held = HeldStage(load.instance_id, load.placer, load.requested, state.joined)
                self._stages[load.instance_id] = _Stage(held, name)
                reserved = KvRequest(state.private_bytes, load.kv_bytes, load.kv_bytes)
                self._budget.reserve(load.instance_id, load.shard.model_id, reserved, 0)
                self._budget.loaded(load.instance_id)

    async def look(self, nodes_here: int) -> None:
        """Ask the engines how they are used. Of one that does not reply, the last reply counts."""
        stages = [stage for stage in self._stages.values() if stage.held.joined]
        states = await asyncio.gather(*(self._describe(stage.engine) for stage in stages))
        reserved, seen = self.reserved, memory()
        now = self._device.offer(seen, nodes_here, reserved)
        for stage, state in zip(stages, states, strict=True):
            if state and state.joined:
                instance_id = stage.held.instance_id
                left = reserved - self._budget.reserved_for(instance_id)
                frees = self._device.offer(seen, nodes_here, left, state.private_bytes) - now
                stage.use = StageUse(instance_id, state.idle_s, max(frees, 0))

    async def load(self, work: ShardLoad, card: ModelCard, nodes_here: int, placer: str) -> ShardLoaded:
        """Fetch a shard's files and meanwhile start an engine for it, then load. Raises RequestError.

        `nodes_here` nodes share this machine. The node `placer` requested the stage.
        """
        stage = self._stages[work.instance_id] = _Stage(HeldStage(work.instance_id, placer, work.requested))
        try:
            if work.auto_bits not in (0, *AUTO_BITS):
                rounds = f"{self._config.name} rounds to {' or '.join(map(str, AUTO_BITS))} bits"
                raise RequestError(FailureCode.UNSUPPORTED, f"{rounds}, not to {work.auto_bits}; update exobus there")
            return await self._load(stage, work, card, nodes_here)
        except BaseException as error:
            await asyncio.shield(self._remove(stage))
            if isinstance(error, RequestError) and len(work.shard.layers) < work.shard.n_layers:
                raise RequestError(error.code, f"node {self._config.name}: {error.message}") from error
            raise

    async def join(self, instance: Instance) -> None:
        """Give the stage of an instance its place in the ring. Raises RequestError."""
        stage = self._stages.get(instance.instance_id)
        if stage is None:
            sentence = f"{self._config.name} holds no stage of this instance any more; ask for the model again"
            raise RequestError(FailureCode.CONFLICT, sentence)
        await self._bus.request(stage.engine, StageJoin(instance), RequestDone, JOIN_TIMEOUT_S)
        stage.held = msgspec.structs.replace(stage.held, joined=instance)

    async def drain(self, instance_id: str, *, if_idle: bool = False) -> None:
        """Wait until the sessions of a stage are over, then end it. Raises RequestError.

        With `if_idle` a stage that has sessions stays as it is, which is an error.

        An engine is drained once, though two placers that disagreed for a moment may both ask for it.
        """
        if stage := self._stages.get(instance_id):
            async with stage.draining:
                if self._stages.get(instance_id) is stage and stage.engine:
                    await self._bus.request(stage.engine, StageDrain(if_idle), RequestDone, DRAIN_TIMEOUT_S)
                await self.end(instance_id)

    async def end(self, instance_id: str) -> bool:
        """End a stage's process. Returns False if there is no such stage."""
        stage = self._stages.get(instance_id)
        if stage is None:
            return False
        await self._remove(stage)
        return True

    async def end_strays(self, engines: Sequence[HubActor], now: float) -> None:
        """End the engines that belong to no stage: their node actor crashed, or an earlier request to end them failed.

        `engines` are the actors that the hub knows, and `now` is a monotonic time in seconds.
        """
        ours = {stage.engine for stage in self._stages.values()}
        names = [engine.name for engine in engines if engine.name.startswith(ENGINE_PREFIX)]
        self._strays = {name: self._strays.get(name, now) for name in names if name not in ours}
        for name in [name for name, since in self._strays.items() if now - since >= STRAY_S]:
            await self._stop_engine(name)

    def engine_ended(self, engine: str) -> list[HeldStage]:
        """Forget the stage of an engine that has ended, and return it."""
        lost = [stage.held for stage in self._stages.values() if stage.engine == engine]
        for held in lost:
            self._forget(held.instance_id)
        return lost

    async def _load(self, stage: _Stage, work: ShardLoad, card: ModelCard, nodes_here: int) -> ShardLoaded:
        measured = await self._device.measured()
        path = await self._fetch_and_start(stage, work, card, self._device.threads(nodes_here))
        self._check_wanted(stage, work)
        await self._bus.publish(Status(work.shard.model_id, f"loading {work.shard} on {self._config.name}"))
        offered = self._device.now(nodes_here, self.reserved)
        bits = rounded_to(card, work.shard, offered, work.auto_bits)
        room = offered.memory_available - card.least_kv_bytes(work.shard)
        need = engine_bytes(card, work.shard, offered, bits)
        engine, engines = with_room(measured.engines, measured.engine, need, room)
        weights = max([need[engine], *(nbytes for nbytes in need.values() if nbytes <= room)])
        load = EngineLoad(
            engine,
            work.instance_id,
            work.epoch,
            work.shard,
            path,
            stage.held.placer,
            work.requested,
            self._reserve(work, card, weights, self._device.offer(memory(), nodes_here, 0)),
            self._config.precision,
            bits,
            engines,
        )
        loaded = await self._bus.request(stage.engine, load, ShardLoaded, LOAD_TIMEOUT_S)
        self._check_wanted(stage, work)
        self._budget.loaded(work.instance_id)
        return loaded

    def _check_wanted(self, stage: _Stage, work: ShardLoad) -> None:
        """Raise RequestError if the stage was ended while it was being loaded."""
        if self._stages.get(work.instance_id) is not stage:
            raise RequestError(FailureCode.UNREACHABLE, f"{work.shard} is not wanted on {self._config.name} any more")

    def _reserve(self, work: ShardLoad, card: ModelCard, weights: int, free: int) -> int:
        """Return the bytes that a stage may use for keys and values; at most what MAX_SLOTS whole contexts take.

        Its weights take `weights` bytes at most. Raises RequestError if other stages have taken the user's limit since
        the placer looked.
        """
        shard, limit = work.shard, self._config.memory
        most = card.kv_bytes(shard, MAX_SLOTS * card.context_length)
        request = KvRequest(weights, card.least_kv_bytes(shard), most, self._config.kv_memory)
        if limit and weights + request.share(0) > limit - self._budget.reserved(card.id):
            sentence = f"the memory for models is in use by now, so that {shard} does not fit; try again"
            raise RequestError(FailureCode.INSUFFICIENT_MEMORY, sentence)
        return self._budget.reserve(work.instance_id, card.id, request, free, limit)

    async def _fetch_and_start(self, stage: _Stage, work: ShardLoad, card: ModelCard, threads: int) -> str:
        """Return the path of a shard's files, once its engine runs as well. If the files fail, the engine ends."""
        starting = asyncio.create_task(self._start_engine(stage, threads))
        try:
            want = DownloadWant(work.shard.model_id, work.shard, travelling(card))
            files = await self._bus.request("download", want, DownloadDone, LOAD_TIMEOUT_S)
            await asyncio.shield(starting)
        except BaseException:
            with suppress(RequestError):
                await asyncio.shield(starting)
            raise
        return files.path

    async def _start_engine(self, stage: _Stage, threads: int) -> None:
        stage.engine = (await self._bus.request("supervisor", ActorStart(threads), ActorStarted, ENGINE_TIMEOUT_S)).name

    async def _remove(self, stage: _Stage) -> None:
        """Forget a stage and end its engine. Does not fail."""
        if self._stages.get(stage.held.instance_id) is stage:
            self._forget(stage.held.instance_id)
        if stage.engine:
            await self._stop_engine(stage.engine)

    def _forget(self, instance_id: str) -> None:
        del self._stages[instance_id]
        self._budget.release(instance_id)

    async def _stop_engine(self, engine: str) -> None:
        """End an engine; if the supervisor cannot be reached, `end_strays` tries again."""
        try:
            # A hub that was just started again may not know the supervisor yet.
            await self._bus.request_at_start("supervisor", ActorStop(engine), RequestDone, STOP_TIMEOUT_S)
        except RequestError as error:
            logger.warning("%s could not be ended and is tried again: %s", engine, error.message)

    async def _describe(self, engine: str) -> EngineState | None:
        with suppress(RequestError):
            return await self._bus.request(engine, EngineDescribe(), EngineState, DESCRIBE_TIMEOUT_S)
        return None
