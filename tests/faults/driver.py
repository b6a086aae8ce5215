"""Runs cells on rings: strikes the victim, watches the clients, and counts what is left over. Several rings at a time.

What computes much, which is starting a ring and streaming, takes turns, so that rings side by side do not slow each
other down. A cell that only waits needs no turn.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.faults.cells import CENSUS_AFTER_S, KILL, QUIET_S, Cell, Layout, Load, Target
from tests.faults.clients import ASK_EVERY_S, Asker, Stream
from tests.faults.model import QUESTION, STORY
from tests.faults.ring import LOOK_EVERY_S, Member, Ring, lives, ring
from tests.faults.seen import GOAL_S, CellSeen

STREAMING_TURN_S = 6.0  # from the fault on; a stream that is not over by then has stopped
FLOWS_WITHIN_S = 15.0
WHOLE_WITHIN_S = 120.0
PATIENCE_S = 20.0
AGAIN_WITHIN_S = 15.0  # a ring that has not formed again by then is replaced

Result = tuple[Cell, CellSeen]


class Halted(Exception):
    """The run was asked to end."""


@dataclass
class Run:
    """What the cells of a run share: the model, the undisturbed texts, and whose turn it is.

    What does not come within `patience_s` after the goal is given up.
    """

    cards: Path
    report: Callable[[Cell, CellSeen], None] = lambda cell, seen: None
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(1))
    halted: threading.Event = field(default_factory=threading.Event)
    patience_s: float = PATIENCE_S
    whole: str = ""
    good: str = ""

    def pause(self, seconds: float) -> None:
        """Wait. Raises Halted if the run should end."""
        if self.halted.wait(max(seconds, 0.0)):
            raise Halted

    def wait(self, clients: Sequence[Asker | Stream], until: float) -> None:
        """Wait until all clients are done, or until a monotonic time. Raises Halted if the run should end."""
        while time.monotonic() < until and not all(client.over.is_set() for client in clients):
            self.pause(0.02)


@dataclass(frozen=True)
class Times:
    """The monotonic times of a cell: the fault's begin and end, from when on requests count, when they are given up."""

    begun_at: float
    over_at: float
    since: float
    until: float

    @classmethod
    def of(cls, cell: Cell, begun_at: float, patience_s: float) -> Times:
        """Return the times of a cell in which the fault has just begun."""
        over_at = begun_at + cell.fault.seconds
        since = over_at + QUIET_S if cell.load is Load.QUIET else begun_at
        return cls(begun_at, over_at, since, max(since, over_at) + GOAL_S + patience_s)


def run(batches: Sequence[Sequence[Cell]], rings: int, shared: Run) -> list[Result]:
    """Run all batches, `rings` at a time, and return what was seen of every cell, in the order of the batches.

    An exception, such as KeyboardInterrupt, is raised once all rings have ended.
    """
    with ThreadPoolExecutor(rings) as pool:
        futures = [pool.submit(_run_batch, batch, shared) for batch in batches]
        try:
            return [result for future in futures for result in future.result()]
        except BaseException:
            shared.halted.set()
            pool.shutdown(cancel_futures=True)
            raise


def _run_batch(batch: Sequence[Cell], shared: Run) -> list[Result]:
    """Run cells of one layout on one ring, and on a new one after each cell from which the ring does not recover."""
    results: list[Result] = []
    while left := batch[len(results) :]:
        try:
            done = _run_on_one_ring(left, shared)
        except pytest.skip.Exception as reason:
            done = [(cell, CellSeen(cell.name, skipped=str(reason))) for cell in left]
        for cell, seen in done:
            shared.report(cell, seen)
        results += done
    return results


def _run_on_one_ring(cells: Sequence[Cell], shared: Run) -> list[Result]:
    """Run at least one cell, and further ones while the ring forms again after each."""
    done: list[Result] = []
    try:
        with _formed_ring(cells[0].layout, shared) as started:
            for cell in cells:
                seen = _run_cell(started, cell, shared)
                lasting = _lasting(started, shared)
                done.append((cell, msgspec.structs.replace(seen, left=seen.left + lasting)))
                if lasting:
                    break
            ended = started.stop()
    except AssertionError as error:
        return [*done, (cells[len(done)], CellSeen(cells[len(done)].name, void=str(error)))]
    return [(cell, msgspec.structs.replace(seen, left=seen.left + ended)) for cell, seen in done]


@contextmanager
def _formed_ring(layout: Layout, shared: Run) -> Iterator[Ring]:
    """Start a ring when it is its turn. The first one tells the undisturbed texts."""
    with ExitStack() as stack:
        with shared.turn:
            shared.pause(0)
            started = stack.enter_context(ring(layout, shared.cards))
            shared.good = started.form(shared.good)
            shared.whole = shared.whole or _undisturbed(next(iter(started.members.values())), shared)
        yield started


def _undisturbed(member: Member, shared: Run) -> str:
    stream = Stream(member.node.api, member.inside, STORY, WHOLE_WITHIN_S)
    shared.wait([stream], time.monotonic() + WHOLE_WITHIN_S)
    assert stream.complete, "an undisturbed stream does not end"
    return stream.text


def _lasting(started: Ring, shared: Run) -> tuple[str, ...]:
    """Wait until the ring is as it was before the fault; return what keeps it from that, or nothing."""
    try:
        with nullcontext() if all(member.running() for member in started.members.values()) else shared.turn:
            started.form(shared.good, AGAIN_WITHIN_S)
    except AssertionError as error:
        return (f"ring: it does not form again ({error})",)
    stale = started.stale_folders()
    return (f"machine: {stale} run folders",) if stale else ()


def _run_cell(started: Ring, cell: Cell, shared: Run) -> CellSeen:
    """Run one cell on a ring that has formed. Raises AssertionError if the ring lacks the target."""
    here, there = started.members[cell.place], started.members[cell.other]
    with ExitStack() as turn:
        streams: list[Stream] = []
        if cell.load is Load.STREAM:
            turn.enter_context(shared.turn)
            streams = [_flowing(member, cell, shared) for member in (here, there)]
        if any(stream.over.is_set() or not stream.flowing.is_set() for stream in streams):
            return CellSeen(cell.name, void="no traffic flowed when the fault came")
        processes = [] if cell.target is Target.CABLE else started.processes(cell)
        with _struck(started, cell, processes) as begun_at:
            times = Times.of(cell, begun_at, shared.patience_s)
            asked = [there] if cell.ends_node else [here, there]
            askers = [_asker(member, times, shared) for member in asked]
            shared.wait([*askers, *streams], begun_at + STREAMING_TURN_S)
            turn.close()
            shared.wait([*askers, *streams], times.until)
            left = _left_over(started, processes, shared, times.over_at)
            return _seen(cell, shared, times, askers, streams, left)


def _left_over(started: Ring, processes: Sequence[psutil.Process], shared: Run, over_at: float) -> tuple[str, ...]:
    """Return what is still left over CENSUS_AFTER_S after the fault, or nothing as soon as that is so.

    The fault ends at the monotonic time `over_at`, and earlier if all processes that it froze have been killed.
    """
    while time.monotonic() < over_at and (not processes or any(map(lives, processes))):
        shared.pause(LOOK_EVERY_S)
    until = min(time.monotonic(), over_at) + CENSUS_AFTER_S
    while (left := started.left_over()) and time.monotonic() < until:
        shared.pause(LOOK_EVERY_S)
    return left


def _flowing(member: Member, cell: Cell, shared: Run) -> Stream:
    """Start a stream, and wait until traffic flows."""
    give_up_s = 2 * FLOWS_WITHIN_S + cell.fault.seconds + GOAL_S + shared.patience_s
    stream = Stream(member.node.api, member.inside, STORY, give_up_s)
    until = time.monotonic() + FLOWS_WITHIN_S
    while not stream.flowing.is_set() and not stream.over.is_set() and time.monotonic() < until:
        shared.pause(0.02)
    return stream


def _asker(member: Member, times: Times, shared: Run) -> Asker:
    return Asker(member.node.api, member.inside, QUESTION, shared.good, times.since + ASK_EVERY_S, times.until)


def _seen(
    cell: Cell,
    shared: Run,
    times: Times,
    askers: Sequence[Asker],
    streams: Sequence[Stream],
    left: tuple[str, ...],
) -> CellSeen:
    at_streams = [stream.seen(times.begun_at, shared.whole) for stream in streams]
    for stream in streams:
        stream.leave()
    stream_here, stream_there = at_streams or (None, None)
    *answer_here, answer_there = [asker.seen(times.since) for asker in askers]
    return CellSeen(
        cell.name,
        stream_here=stream_here,
        stream_there=stream_there,
        answer_here=answer_here[0] if answer_here else None,
        answer_there=answer_there,
        left=left,
    )


@contextmanager
def _struck(started: Ring, cell: Cell, processes: Sequence[psutil.Process]) -> Iterator[float]:
    """Begin a fault, and yield when it began. It ends by itself after its seconds, and in any case after the block."""
    ended = threading.Event()

    def end() -> None:
        if ended.is_set():
            return
        ended.set()
        if cell.target is Target.CABLE:
            started.plug(connected=True)
        _send(processes, signal.SIGCONT)

    timer = threading.Timer(cell.fault.seconds, end)
    begun_at = time.monotonic()
    try:
        if cell.target is Target.CABLE:
            started.plug(connected=False)
        _send(processes, signal.SIGKILL if cell.fault == KILL else signal.SIGSTOP)
        timer.start()
        yield begun_at
    finally:
        timer.cancel()
        end()


def _send(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
