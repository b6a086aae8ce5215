"""A process that hosts one stage of a synthetic model, or of a real one, on the thread that every engine runs on.

`python -m tests.support.ring.synthetic_stage SETTINGS` writes `Ready` as a line of JSON, answers each line on its
standard input with one line, and ends with its input. `synthetic_ring` starts these processes and joins them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import msgspec

from bus.dataplane.access import LOCAL
from bus.dataplane.transport import Transport
from cluster.placement import Instance
from cluster.shard import Shard
from ring.loaded_shard import load_shard
from ring.ring_view import ring_view
from ring.stage_thread import StageThread
from ring.steps import StageCounts
from tests.support.network.dataplane import Node, without_keys
from tests.support.ring.synthetic_engine import Call, Journal, Released, SyntheticEngine

WITHIN_S = 20.0
SYNTHETIC = "synthetic"


class Settings(msgspec.Struct, frozen=True):
    """The settings of a hosted stage. `kv_bytes` is its memory for keys and values.

    With a `node`, the stage is on a node of its own, and is reached over tcp.
    """

    run_dir: str
    name: str
    shard: Shard
    epoch: int
    model: str
    kv_bytes: int
    engine: str = SYNTHETIC
    node: Node | None = None


class Ready(msgspec.Struct, frozen=True):
    """The stage is loaded and listens."""

    endpoints: tuple[str, ...]
    positions: int
    exact_rows: int


class Join(msgspec.Struct, frozen=True, tag=True):
    """Join the ring."""

    instance: Instance
    actor: str


class Look(msgspec.Struct, frozen=True, tag=True):
    """Report the counts and, if wanted, the engine's journal."""

    journal: bool = False


class Seen(msgspec.Struct, frozen=True):
    """A stage now: its counts, the slots that its engine holds, what it dropped, and the calls of the engine."""

    counts: StageCounts
    slots: int
    dropped: dict[str, int]
    calls: list[Call]
    released: list[Released]

    @property
    def sessions(self) -> int:
        """Number of open sessions."""
        return self.counts.sessions


def main() -> None:
    """Host a stage until standard input ends."""
    settings = msgspec.json.decode(sys.argv[1], type=Settings)
    engine = SyntheticEngine()
    with ExitStack() as stack:
        if settings.engine == SYNTHETIC:
            stack.enter_context(patch("ring.loaded_shard.create", lambda *_: engine))
        if settings.node and settings.node.plain:
            stack.enter_context(without_keys())
        serve(settings, engine.journal)


def serve(settings: Settings, journal: Journal) -> None:
    """Reply to the parent's requests."""
    stage = hosted(settings)
    shard = stage.loaded.result(WITHIN_S)
    write(Ready(shard.endpoints, shard.positions, shard.exact_rows))
    for request in requests():
        if isinstance(request, Join):
            stage.join_ring(ring_view(request.instance, request.actor)).result(WITHIN_S)
        write(seen(stage, journal, isinstance(request, Look) and request.journal))
    stage.finish().result(WITHIN_S)
    stage.join(WITHIN_S)


def hosted(settings: Settings) -> StageThread:
    """Return the stage's thread, with its shard loaded."""
    access = settings.node.access() if settings.node else LOCAL
    stage = StageThread(
        lambda: load_shard(
            settings.engine,
            settings.shard,
            settings.epoch,
            Path(settings.model),
            lambda: Transport(Path(settings.run_dir), settings.name, access),
            kv_bytes=settings.kv_bytes,
        )
    )
    stage.start()
    stage.loaded.result(WITHIN_S)
    return stage


def requests() -> Iterator[Join | Look]:
    """Yield the parent's requests, until it closes its end."""
    for line in sys.stdin.buffer:
        yield msgspec.json.decode(line, type=Join | Look)


def seen(stage: StageThread, journal: Journal, whole: bool) -> Seen:
    """Return the stage's counts and the engine's journal. Another thread writes both, and only appends."""
    calls, released = (list(journal.calls), list(journal.released)) if whole else ([], [])
    return Seen(stage.counts, journal.slots, stage.dropped, calls, released)


def write(answer: msgspec.Struct) -> None:
    """Write one line to the parent."""
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
