"""The process of one stage: serves load, join and drain on the control bus while its stage thread computes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from pathlib import Path

import psutil

from bus.actor import every, on
from bus.client import BusClient, RequestError
from bus.dataplane.actor import DataPlaneActor
from bus.dataplane.transport import Transport
from bus.messages import (
    EngineLoad,
    EngineStats,
    RequestDone,
    ShardLoaded,
    StageDrain,
    StageJoin,
)
from bus.process import actor_name, run_actor
from bus.wire import Envelope
from cluster.failures import FailureCode
from common.config import NodeConfig
from engines.engine import EngineError
from models.errors import ModelError
from ring.stage_thread import StageThread
from ring.types import StageCounts, ring_view

LOAD_WITHIN_S = 600.0


class EngineActor(DataPlaneActor):
    """Holds at most one stage in its life; its node actor ends the process to free the memory."""

    name = "engine"

    def __init__(self, config: NodeConfig, bus: BusClient) -> None:
        super().__init__(config, bus)
        self._stage: StageThread | None = None
        self._load: EngineLoad | None = None
        self._reported = StageCounts()

    async def started(self) -> None:
        """Only linked nodes' frames are taken."""
        await self.follow_links()

    async def stopping(self) -> None:
        """End the stage after the step that it computes."""
        if self._stage and self._stage.loaded.done() and self._stage.is_alive():
            self._stage.finish()
            await asyncio.to_thread(self._stage.join, 1.0)

    @on(EngineLoad)
    async def load(self, message: EngineLoad, envelope: Envelope) -> ShardLoaded:
        """Read the shard on the stage's own thread, and listen."""
        if self._stage is not None:
            raise RequestError(
                FailureCode.CONFLICT, f"{self.bus.address} holds a stage already; ask for another engine"
            )
        begun = time.monotonic()
        self._load = message
        run_dir, name, reach = self._config.run_path, self.bus.name, self._reach
        self._stage = StageThread(
            message.engine,
            message.shard,
            message.epoch,
            Path(message.path),
            precision=message.precision,
            kv_bytes=message.kv_bytes,
            ring=lambda: Transport(run_dir, name, reach),
        )
        self._stage.start()
        try:
            endpoints = await asyncio.wait_for(asyncio.wrap_future(self._stage.loaded), LOAD_WITHIN_S)
        except (EngineError, ModelError, OSError, MemoryError) as error:
            raise RequestError(
                FailureCode.LOAD_FAILED, f"{message.engine} cannot load {message.shard}: {error}"
            ) from error
        resident, seconds = psutil.Process().memory_info().rss, time.monotonic() - begun
        positions, exact_rows = self._stage.positions, self._stage.exact_rows
        return ShardLoaded(self.bus.address, message.engine, endpoints, seconds, resident, positions, exact_rows)

    @on(StageJoin)
    async def join(self, message: StageJoin, envelope: Envelope) -> RequestDone:
        """Connect to the next stage, and to the first."""
        stage = self._loaded()
        try:
            await asyncio.wrap_future(stage.join_ring(ring_view(message.instance, self.bus.address)))
        except ValueError as error:  # no end point, another node's, or one that is not linked
            raise RequestError(FailureCode.UNREACHABLE, f"{self.bus.address} cannot join the ring: {error}") from error
        return RequestDone()

    @on(StageDrain)
    async def drain(self, message: StageDrain, envelope: Envelope) -> RequestDone:
        """Take no new sessions and wait for the running ones."""
        await asyncio.wrap_future(self._loaded().drain())
        return RequestDone()

    @every(1.0)
    async def report(self) -> None:
        """Say what the stage did, once a second while it works; a dead stage ends the process."""
        if self._stage is None or self._load is None or not self._stage.loaded.done():
            return
        if self._stage.loaded.exception() is None and not self._stage.is_alive():
            raise RuntimeError("the stage's thread ended; see the log above")
        counts = self._stage.counts
        if counts != self._reported:
            self._reported = counts
            await self.bus.publish(self._stats(self._load, counts))

    def _stats(self, load: EngineLoad, counts: StageCounts) -> EngineStats:
        dropped = self._stage.dropped if self._stage else {}
        return EngineStats(self.bus.address, load.shard.model_id, load.epoch, **asdict(counts), dropped=dropped)

    def _loaded(self) -> StageThread:
        if self._stage is None or not self._stage.loaded.done():
            raise RequestError(FailureCode.CONFLICT, f"{self.bus.address} has no stage yet; load a shard first")
        return self._stage


if __name__ == "__main__":
    run_actor(EngineActor, actor_name("engine"))
