"""A process that hosts one stage of a synthetic model, or of a real one, on the thread that every engine runs on.

`python -m tests.support.synthetic SETTINGS` says `Ready` in a line of JSON, answers each line on its standard input
with
one line, and ends with its input. `tests.support.synthetic_ring` starts these processes and joins them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import msgspec

from bus.dataplane.transport import Transport
from cluster.placement import Instance
from cluster.shard import Shard
from ring.stage_thread import StageThread
from ring.types import StageCounts, ring_view
from tests.support.access import Node, without_keys
from tests.support.synthetic_engine import Call, Journal, Released, SyntheticEngine

WITHIN_S = 20.0
SYNTHETIC = "synthetic"


class Settings(msgspec.Struct, frozen=True):
    """What a hosted stage is told at its start. `kv_bytes` is its memory for keys and values.

    With a `node` it is on one of its own, and is reached over tcp.
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
    """Take a place in the ring."""

    instance: Instance
    actor: str


class Look(msgspec.Struct, frozen=True, tag=True):
    """Say what was done; with the journal, if wanted."""

    journal: bool = False


class Seen(msgspec.Struct, frozen=True):
    """A stage as it is now: what it counted, how many slots its engine holds, what it dropped, what the engine did."""

    counts: StageCounts
    slots: int
    dropped: dict[str, int]
    calls: list[Call]
    released: list[Released]

    @property
    def sessions(self) -> int:
        """How many it holds."""
        return self.counts.sessions


def main() -> None:
    """Host a stage until standard input ends."""
    settings = msgspec.json.decode(sys.argv[1], type=Settings)
    engine = SyntheticEngine()
    with ExitStack() as stack:
        if settings.engine == SYNTHETIC:
            stack.enter_context(patch("ring.stage_thread.create", lambda *_: engine))
        if settings.node and settings.node.plain:
            stack.enter_context(without_keys())
        serve(settings, engine.journal)


def serve(settings: Settings, journal: Journal) -> None:
    """Answer what the parent asks."""
    stage = hosted(settings)
    say(Ready(stage.loaded.result(WITHIN_S), stage.positions, stage.exact_rows))
    for question in questions():
        if isinstance(question, Join):
            stage.join_ring(ring_view(question.instance, question.actor)).result(WITHIN_S)
        say(seen(stage, journal, isinstance(question, Look) and question.journal))
    stage.finish().result(WITHIN_S)
    stage.join(WITHIN_S)


def hosted(settings: Settings) -> StageThread:
    """The stage's thread, with its shard loaded."""
    folder, name, place = Path(settings.run_dir), settings.name, settings.node.place() if settings.node else None
    stage = StageThread(
        settings.engine,
        settings.shard,
        settings.epoch,
        Path(settings.model),
        lambda: Transport(folder, name, place),
        kv_bytes=settings.kv_bytes,
    )
    stage.start()
    stage.loaded.result(WITHIN_S)
    return stage


def questions() -> Iterator[Join | Look]:
    """What the parent asks, until it closes its end."""
    for line in sys.stdin.buffer:
        yield msgspec.json.decode(line, type=Join | Look)


def seen(stage: StageThread, journal: Journal, whole: bool) -> Seen:
    """The stage's counts and the engine's journal. Both belong to another thread, whose appends do not disturb."""
    calls, released = (list(journal.calls), list(journal.released)) if whole else ([], [])
    return Seen(stage.counts, journal.slots, stage.dropped, calls, released)


def say(answer: msgspec.Struct) -> None:
    """One line to the parent."""
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
