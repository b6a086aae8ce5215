"""The thread that a stage lives on, so that control never waits for a matrix product. It computes nothing itself."""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from bus.dataplane.transport import Transport
from cluster.shard import Shard
from engines.registry import create
from ring.stage import Stage
from ring.types import RingView, StageCounts


class StageThread(threading.Thread):
    """Loads a shard, then serves its sessions until `finish`. Results of calls come as futures.

    Engine and sockets belong to this thread: both may be used only where they were made. `kv_bytes` of memory are for
    keys and values; once loaded, `positions` is how many positions they hold.
    """

    def __init__(
        self,
        engine: str,
        shard: Shard,
        epoch: int,
        weights: Path,
        ring: Callable[[], Transport],
        *,
        kv_bytes: int,
        precision: str = "fast",
    ) -> None:
        super().__init__(name=f"stage {shard}", daemon=True)
        self.loaded: Future[tuple[str, ...]] = Future()
        self.stage: Stage
        self.positions = 0
        self.exact_rows = 1
        self._engine_name = engine
        self._precision = precision
        self._kv_bytes = kv_bytes
        self._shard = shard
        self._epoch = epoch
        self._weights = weights
        self._make_ring = ring
        self._ring: Transport
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._finished = False

    @property
    def counts(self) -> StageCounts:
        """What the stage did since it was loaded."""
        return self.stage.counts

    @property
    def dropped(self) -> dict[str, int]:
        """Frames that were refused or missed, by reason."""
        return self.stage.dropped

    def join_ring(self, place: RingView) -> Future[None]:
        """Take a place in the ring and connect."""
        return self._call(lambda: self.stage.connect(place))

    def drain(self) -> Future[None]:
        """Take no new sessions; done when the last one here is over."""
        drained: Future[None] = Future()
        self._call(lambda: self.stage.drain(drained))
        return drained

    def finish(self) -> Future[None]:
        """End the loop after the step that runs."""
        return self._call(self._end)

    def run(self) -> None:
        """Load, then loop. A failure to load is the future's; a failure later is logged and ends the process's use."""
        try:
            engine = create(self._engine_name, self._precision)
            engine.load(self._shard, self._weights)
            self.positions = self._kv_bytes // engine.position_bytes
            self.exact_rows = engine.exact_rows
            self._ring = self._make_ring()
            self.stage = Stage(engine, self._shard, self._epoch, self._ring)
            gc.freeze()  # what is loaded stays: a collection in the midst of a token need not walk through it
        except Exception as error:  # handed on to whoever asked for the load, whatever it is
            self.loaded.set_exception(error)
            return
        self.loaded.set_result(self._ring.endpoints)
        try:
            while not self._finished:
                self.stage.turn()
                self._obey()
        finally:
            self._ring.close()
            engine.close()

    def _obey(self) -> None:
        while not self._commands.empty():
            self._commands.get()()

    def _call(self, command: Callable[[], None]) -> Future[None]:
        future: Future[None] = Future()

        def run() -> None:
            try:
                command()
                future.set_result(None)
            except ValueError as error:
                future.set_exception(error)

        self._commands.put(run)
        self._ring.wake()
        return future

    def _end(self) -> None:
        self._finished = True
