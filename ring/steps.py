"""What a stage computes, and what comes of it: the values that its parts pass to each other."""

from __future__ import annotations

from dataclasses import dataclass

from bus.dataplane.frames import Payload
from ring.sessions import StageSession


@dataclass(slots=True, eq=False)
class Step:
    """One session's share of a micro-batch: rows that continue it at `position`.

    `inputs` are token ids (rows,) on the first stage, else hidden states (rows, width). With `samples` a token is
    sampled after the last row. With `rollback` what the session holds from `position` on is forgotten first.
    `compute_ns` is what the step has cost in engines so far, all stages together.
    """

    session: StageSession
    position: int
    inputs: Payload
    samples: bool
    rollback: bool = False
    compute_ns: int = 0

    @property
    def end(self) -> int:
        """The position after the last row."""
        return self.position + len(self.inputs)


@dataclass(frozen=True, slots=True, eq=False)
class SampledTokens:
    """What a pass gave a session: `tokens` for the positions from `position` on, and drafts of what may follow.

    With `rollback` some drafts of the pass before were rejected. With `finished` the last token ends the session.
    """

    session: StageSession
    position: int
    tokens: list[int]
    drafts: tuple[int, ...]
    rollback: bool
    finished: bool
    compute_ns: int


@dataclass(frozen=True, slots=True)
class StageCounts:
    """What a stage did since it was loaded; sessions, waiting and stored positions are the current ones."""

    sessions: int = 0
    waiting: int = 0
    forwards: int = 0
    rows: int = 0
    reused_rows: int = 0
    stored_positions: int = 0
    drafted: int = 0
    accepted: int = 0
    busy_seconds: float = 0.0
