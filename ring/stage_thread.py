"""The thread that a stage runs on, so that control messages never wait for a matrix product."""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from ring.coordinator import RingCoordinator
from ring.loaded_shard import LoadedShard
from ring.relay import Follower, Forwarder
from ring.ring_view import RingView
from ring.sessions import SessionProgress
from ring.stage import Stage
from ring.steps import StageCounts
from ring.token_sampler import LoneTokenSampler, TokenSampler


class InUse(Exception):
    """A stage has a session that runs or waits."""


class StageThread(threading.Thread):
    """Loads a shard, joins a ring, and serves its sessions until `finish`.

    Engine and sockets belong to this thread: both may be used only where they were made. The methods are for other
    threads, after `loaded` is done; they return futures. Commands are carried out in order, except those whose future
    was cancelled before.
    """

    def __init__(self, load: Callable[[], LoadedShard]) -> None:
        super().__init__(name="stage", daemon=True)
        self.loaded: Future[LoadedShard] = Future()
        self._load = load
        self._stage: Stage | None = None
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._finished = False

    @property
    def stage(self) -> Stage:
        """The stage, after `join_ring`."""
        assert self._stage is not None, "the shard has not joined a ring"
        return self._stage

    @property
    def counts(self) -> StageCounts:
        """What the stage did since it was loaded."""
        return self._stage.counts if self._stage else StageCounts()

    @property
    def idle_s(self) -> float:
        """For how many seconds the stage had no session; 0.0 before `join_ring`."""
        return self._stage.idle_s if self._stage else 0.0

    @property
    def dropped(self) -> dict[str, int]:
        """Frames that were refused or lost, by reason."""
        return dict(self.loaded.result(0).transport.dropped)

    def progress_of(self, session_ids: Sequence[int]) -> tuple[int, list[SessionProgress | None]]:
        """Return how many turns of receiving the stage has done, and how far each session is there.

        It is None for a session that is not known. The stage is not asked, so this works during a pass, too.
        """
        stage = self._stage
        if stage is None:
            return 0, [None] * len(session_ids)
        return stage.turns, [stage.progress_of(session_id) for session_id in session_ids]

    def join_ring(self, ring: RingView) -> Future[None]:
        """Take a place in a ring, once, and connect. The future fails with ValueError if that is not possible."""
        return self._call(lambda: self._join(ring))

    def drain(self, *, if_idle: bool = False) -> Future[None]:
        """Take no new sessions; the future is done when the last one here is over.

        With `if_idle` it fails with InUse at once, and nothing changes, if a session runs or waits.
        """
        drained: Future[None] = Future()

        def begin() -> None:
            if if_idle and self._stage and (self._stage.counts.sessions or self._stage.counts.waiting):
                if drained.set_running_or_notify_cancel():
                    drained.set_exception(InUse())
            elif self._stage:
                self._stage.drain(drained)
            elif drained.set_running_or_notify_cancel():
                drained.set_result(None)

        self._call(begin)
        return drained

    def finish(self) -> Future[None]:
        """End the loop after the pass that runs."""
        return self._call(self._end)

    def run(self) -> None:
        """Load, then loop. A failure to load is set on `loaded`; a later one is logged, and ends the thread."""
        if not self.loaded.set_running_or_notify_cancel():
            return
        try:
            shard = self._load()
        except Exception as error:  # passed on to the thread that waits for the load, whatever it is
            self.loaded.set_exception(error)
            return
        gc.freeze()  # what is loaded stays: a collection in the midst of a token need not walk through it
        self.loaded.set_result(shard)
        try:
            while not self._finished:
                if self._stage is None:
                    self._commands.get()()
                else:
                    self._stage.turn()
                    while not self._commands.empty():
                        self._commands.get()()
        finally:
            shard.close()

    def _join(self, ring: RingView) -> None:
        if self._stage is not None:
            raise ValueError("it has joined a ring already")
        self._stage = join_ring(self.loaded.result(0), ring)

    def _call(self, command: Callable[[], None]) -> Future[None]:
        future: Future[None] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():  # its caller has stopped waiting
                return
            try:
                command()
            except ValueError as error:
                future.set_exception(error)
            else:
                future.set_result(None)

        self._commands.put(run)
        self.loaded.result(0).transport.wake()
        return future

    def _end(self) -> None:
        self._finished = True


def join_ring(shard: LoadedShard, ring: RingView) -> Stage:
    """Return the stage that a loaded shard is in a ring, connected to the next and the first stage.

    Raises ValueError if an endpoint is malformed or its node is not linked.
    """
    if ring.size == 1:
        return Stage(shard, ring, RingCoordinator, LoneTokenSampler)
    if ring.index == 0:
        return Stage(shard, ring, RingCoordinator, Forwarder)
    return Stage(shard, ring, Follower, TokenSampler if ring.index == ring.size - 1 else Forwarder)
