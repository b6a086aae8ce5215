"""The process of one stage: load, join and drain on the control bus, while the stage computes on a thread."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import asdict
from pathlib import Path

import psutil

from actors.engine_choice import engine_for
from bus.actor import every, on
from bus.client import BusClient, RequestError
from bus.dataplane.actor import DataPlaneActor
from bus.dataplane.transport import Transport
from bus.messages import (
    EngineDescribe,
    EngineLoad,
    EngineState,
    EngineStats,
    RequestDone,
    SessionCheck,
    SessionState,
    SessionStates,
    ShardLoaded,
    StageDrain,
    StageJoin,
)
from bus.process import actor_name, end_without_finalizing, run_actor
from bus.wire import Envelope
from cluster.failures import FailureCode
from cluster.placement import Instance
from common.config import NodeConfig
from engines.errors import EngineError, NotInParts
from models.errors import ModelError
from ring.loaded_shard import load_shard
from ring.ring_view import ring_view
from ring.stage_thread import InUse, StageThread
from ring.steps import StageCounts

logger = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 600.0


class EngineActor(DataPlaneActor):
    """Holds at most one stage in its life; its node actor ends the process to free the memory."""

    name = "engine"

    def __init__(self, config: NodeConfig, bus: BusClient) -> None:
        super().__init__(config, bus)
        self._thread: StageThread | None = None
        self._load: EngineLoad | None = None
        self._joined: Instance | None = None
        self._reported = StageCounts()

    async def stopping(self) -> None:
        """End the stage after the pass that runs."""
        if self._thread and self._thread.loaded.done() and self._thread.is_alive():
            self._thread.finish()
            await asyncio.to_thread(self._thread.join, 1.0)

    @on(EngineLoad)
    async def load(self, message: EngineLoad, envelope: Envelope) -> ShardLoaded:
        """Load the shard on the stage's own thread, and listen."""
        if self._load is not None:
            raise RequestError(
                FailureCode.CONFLICT, f"{self.bus.address} holds a stage already; ask for another engine"
            )
        begun = time.monotonic()
        self._load = message
        path = Path(message.path)
        engine, why = await asyncio.to_thread(engine_for, message, self._config)
        logger.info("%s runs on %s: %s", message.shard, engine, why)
        run_dir, name, access = self._config.run_path, self.bus.name, self._access
        self._thread = StageThread(
            lambda: load_shard(
                engine,
                message.shard,
                message.epoch,
                path,
                lambda: Transport(run_dir, name, access),
                kv_bytes=message.kv_bytes,
                precision=message.precision,
                bits=message.quantize_bits,
            )
        )
        self._thread.start()
        try:
            shard = await asyncio.wait_for(asyncio.wrap_future(self._thread.loaded), LOAD_TIMEOUT_S)
        except (EngineError, ModelError, OSError, MemoryError) as error:
            code = FailureCode.NOT_IN_PARTS if isinstance(error, NotInParts) else FailureCode.LOAD_FAILED
            raise RequestError(code, f"{engine} cannot load {message.shard}: {error}") from error
        return ShardLoaded(
            self.bus.address,
            engine,
            shard.endpoints,
            time.monotonic() - begun,
            psutil.Process().memory_info().rss,
            shard.positions,
            shard.exact_rows,
            shard.saves,
            shard.quantized_bits,
            why,
        )

    @on(StageJoin)
    async def join(self, message: StageJoin, envelope: Envelope) -> RequestDone:
        """Connect to the next stage and to the first one."""
        thread = self._loaded()
        try:
            await asyncio.wrap_future(thread.join_ring(ring_view(message.instance, self.bus.address)))
        except ValueError as error:  # a malformed endpoint, one of another node, or one of a node that is not linked
            raise RequestError(FailureCode.UNREACHABLE, f"{self.bus.address} cannot join the ring: {error}") from error
        self._joined = message.instance
        return RequestDone()

    @on(EngineDescribe)
    async def describe(self, message: EngineDescribe, envelope: Envelope) -> EngineState:
        """Return what this process holds, also while it is being loaded."""
        idle_s = math.ceil(self._thread.idle_s) if self._thread else 0
        return EngineState(self._load, self._joined, idle_s, _private_bytes())

    @on(StageDrain)
    async def drain(self, message: StageDrain, envelope: Envelope) -> RequestDone:
        """Take no new sessions and wait for the running ones."""
        try:
            await asyncio.wrap_future(self._loaded().drain(if_idle=message.if_idle))
        except InUse:
            raise RequestError(FailureCode.BUSY, f"{self.bus.address} has sessions; try again once they end") from None
        return RequestDone()

    @on(SessionCheck)
    async def check(self, message: SessionCheck, envelope: Envelope) -> SessionStates:
        """Return how far sessions are here, whether or not a pass runs."""
        turns, found = self._loaded().progress_of([_id_of(name) for name in message.sessions])
        states = [
            SessionState(name, **asdict(progress))
            for name, progress in zip(message.sessions, found, strict=True)
            if progress is not None
        ]
        return SessionStates(turns, tuple(states))

    @every(1.0)
    async def report(self) -> None:
        """Publish what the stage did, once a second while it works. Raises RuntimeError if its thread has ended."""
        if self._thread is None or self._load is None or not self._thread.loaded.done():
            return
        if self._thread.loaded.exception() is None and not self._thread.is_alive():
            raise RuntimeError("the stage's thread ended; see the log above")
        counts = self._thread.counts
        if counts != self._reported:
            self._reported, load = counts, self._load
            await self.bus.publish(
                EngineStats(
                    self.bus.address,
                    load.shard.model_id,
                    load.epoch,
                    **asdict(counts),
                    dropped=self._thread.dropped,
                )
            )

    def _loaded(self) -> StageThread:
        if self._thread is None or not self._thread.loaded.done():
            raise RequestError(FailureCode.CONFLICT, f"{self.bus.address} has no stage yet; load a shard first")
        return self._thread


def _id_of(name: str) -> int:
    """Return the id that a session's name stands for; -1, which no session has, if it stands for none."""
    try:
        return int(name, 16)
    except ValueError:
        return -1


def _private_bytes() -> int:
    """Return the memory of this process that no file and no other process has as well, if the system tells it."""
    held = psutil.Process().memory_info()
    return max(held.rss - getattr(held, "shared", 0), 0)


if __name__ == "__main__":
    run_actor(EngineActor, actor_name("engine"))
    end_without_finalizing()
