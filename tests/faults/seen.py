"""What was seen of one cell, and whether that is good enough. Values and rules only."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from actors.freeze_watch import SILENT_S
from tests.faults.cells import Cell, Fault, Load, Target

GOAL_S = 10.0


class End(StrEnum):
    """How a stream ended."""

    COMPLETE = "complete"
    ERROR = "error"
    CUT = "cut"
    WRONG = "wrong text"
    SILENT = "silent"
    RUNNING = "running"


class StreamSeen(msgspec.Struct, frozen=True):
    """How a stream ended, after how many seconds from the fault on, and the sentence of an error or a cut.

    A silent or a running one had not ended when it was given up: the one brought nothing any more, the other did.
    """

    end: End
    after_s: float
    sentence: str = ""


class AnswerSeen(msgspec.Struct, frozen=True):
    """When the next good answer came, in seconds from the fault on, or None if it did not come until `waited_s`.

    `failures` counts the requests before it that failed, and `sentence` is the last failure. A right status with wrong
    text is `wrong`.
    """

    after_s: float | None
    waited_s: float = 0.0
    failures: int = 0
    sentence: str = ""
    wrong: bool = False


class CellSeen(msgspec.Struct, frozen=True):
    """All that was seen of a cell. The streams and answers are at the victim's gateway and at another one.

    `void` is why the cell says nothing, for example that no traffic flowed, and `skipped` why this system cannot run
    it. `left` has a phrase for each thing that was left over, `where: what (details)`.
    """

    name: str
    void: str = ""
    skipped: str = ""
    stream_here: StreamSeen | None = None
    stream_there: StreamSeen | None = None
    answer_here: AnswerSeen | None = None
    answer_there: AnswerSeen | None = None
    left: tuple[str, ...] = ()


_NEEDED = frozenset({Target.ENGINE, Target.NODE_ACTOR, Target.TOPOLOGY})
"""A request needs them on its way through any gateway, and a frozen one does not break its node's link."""

_NEEDED_HERE = _NEEDED | {Target.HUB, Target.NODE, Target.GATEWAY}
"""A request at the victim's own gateway needs these as well."""


def deadline_s(cell: Cell, *, here: bool) -> float:
    """Return by when the next good answer, or the end of a broken stream, has to come, in seconds from the fault on.

    That is GOAL_S, and where a process is frozen that the request needs, GOAL_S after it runs again. After a quiet
    fault the seconds count from the first request on, at which nothing is frozen any more.
    """
    if cell.load is Load.QUIET or cell.fault.kind != "stop":
        return GOAL_S
    frozen = cell.target in (_NEEDED_HERE if here else _NEEDED)
    return GOAL_S + cell.fault.seconds * frozen


def misses(cell: Cell, seen: CellSeen) -> tuple[str, ...]:
    """Return in which ways a cell misses the goal; none if it meets it, or if it was skipped."""
    if seen.void:
        return (f"void: {seen.void}",)
    found = []
    for here, stream, answer in (
        (True, seen.stream_here, seen.answer_here),
        (False, seen.stream_there, seen.answer_there),
    ):
        where = "the victim's gateway" if here else "another gateway"
        if stream and (miss := _stream_miss(cell, stream, here=here)):
            found.append(f"stream at {where}: {miss}")
        if answer and (miss := _answer_miss(answer, deadline_s(cell, here=here))):
            found.append(f"next answer at {where}: {miss}")
    return (*found, *(f"left over: {what}" for what in seen.left))


def _stream_miss(cell: Cell, stream: StreamSeen, *, here: bool) -> str:
    limit = deadline_s(cell, here=here)
    gateway_ended = here and (cell.ends_node or (cell.target is Target.GATEWAY and _ends_process(cell.fault)))
    match stream.end:
        case End.COMPLETE | End.RUNNING:
            return ""
        case End.WRONG:
            return "wrong text"
        case End.CUT if not gateway_ended:
            return f"cut without a sentence after {stream.after_s:.1f} s"
        case End.SILENT:
            return f"nothing for {stream.after_s:.0f} s"
    return f"ended after {stream.after_s:.1f} s" if stream.after_s > limit else ""


def _ends_process(fault: Fault) -> bool:
    """Return whether a process does not survive a fault: a supervisor kills one that is frozen for long."""
    return fault.kind == "kill" or fault.seconds > SILENT_S


def _answer_miss(answer: AnswerSeen, limit: float) -> str:
    if answer.wrong:
        return "wrong text"
    if answer.after_s is None:
        return f"none in {answer.waited_s:.0f} s"
    return f"after {answer.after_s:.1f} s" if answer.after_s > limit else ""
