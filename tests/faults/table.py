"""The results as tables in Markdown: one row for each cell, and a summary with one for each kind of fault."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from tests.faults.cells import Cell
from tests.faults.seen import AnswerSeen, CellSeen, End, StreamSeen, deadline_s, misses

SENTENCE = 60  # characters of a sentence
HEAD = (
    "ring",
    "fault",
    "victim",
    "clients",
    "stream at its gateway",
    "stream elsewhere",
    "next answer at its gateway",
    "next answer elsewhere",
    "left over",
    "goal",
)
SUMMARY_HEAD = ("fault", "cells", "streams", "slowest answer at its gateway", "elsewhere", "left over", "missed")

_FOLDER = re.compile(r"ipc:/\S*/")

Results = Sequence[tuple[Cell, CellSeen]]


def full(results: Results) -> str:
    """Return a table with a row for each cell."""
    return _table(HEAD, (_row(cell, seen) for cell, seen in results))


def summary(results: Results) -> str:
    """Return a table with a row for each target and fault: the worst of all its cells."""
    ordered = sorted(results, key=lambda result: _kind(result[0]))
    return _table(SUMMARY_HEAD, (_summed(kind, list(group)) for kind, group in groupby(ordered, lambda r: _kind(r[0]))))


def _kind(cell: Cell) -> str:
    return f"{cell.target} {cell.fault}"


def _row(cell: Cell, seen: CellSeen) -> tuple[str, ...]:
    missed = misses(cell, seen)
    victim = f"{cell.place}, {'the placer' if cell.placer else 'not the placer'}"
    start = (str(cell.nodes), _kind(cell), victim, str(cell.load))
    if seen.void or seen.skipped:
        return (*start, "", "", "", "", "", f"void: {seen.void}" if seen.void else f"skipped: {seen.skipped}")
    return (
        *start,
        _stream(seen.stream_here),
        _stream(seen.stream_there),
        "gone" if cell.ends_node else _answer(seen.answer_here),
        _answer(seen.answer_there),
        "; ".join(_short(what) for what in seen.left) or "nothing",
        "missed" if missed else "met",
    )


def _stream(seen: StreamSeen | None) -> str:
    if seen is None:
        return ""
    if seen.end in (End.COMPLETE, End.RUNNING):
        return "whole" if seen.end is End.COMPLETE else "goes on"
    sentence = f": {_short(seen.sentence)}" if seen.sentence else ""
    return f"{seen.end} after {seen.after_s:.1f} s{sentence}"


def _answer(seen: AnswerSeen | None) -> str:
    if seen is None:
        return ""
    failures = f" after {seen.failures} failed" if seen.failures else ""
    if seen.wrong:
        return f"wrong text{failures}"
    if seen.after_s is None:
        return f"none in {seen.waited_s:.0f} s{failures}: {_short(seen.sentence)}"
    return f"{seen.after_s:.1f} s{failures}"


def _summed(kind: str, results: Results) -> tuple[str, ...]:
    valid = [(cell, seen) for cell, seen in results if not (seen.void or seen.skipped)]
    streams = [stream for _, seen in valid for stream in (seen.stream_here, seen.stream_there) if stream]
    left = sorted({what.partition(": ")[2].partition(" (")[0] for _, seen in valid for what in seen.left})
    return (
        kind,
        str(len(results)),
        ", ".join(f"{count} {end}" for end in End if (count := sum(stream.end is end for stream in streams))),
        _slowest([(seen.answer_here, deadline_s(cell, here=True)) for cell, seen in valid]),
        _slowest([(seen.answer_there, deadline_s(cell, here=False)) for cell, seen in valid]),
        "; ".join(left) or "nothing",
        str(sum(bool(misses(cell, seen)) for cell, seen in results)),
    )


def _slowest(answers: Iterable[tuple[AnswerSeen | None, float]]) -> str:
    """Return the slowest answer beside its deadline, and before it how many did not come at all."""
    came = [(answer, limit) for answer, limit in answers if answer]
    never = sum(answer.after_s is None for answer, _ in came)
    times = [(answer.after_s, limit) for answer, limit in came if answer.after_s is not None]
    slowest, limit = max(times, default=(0.0, 0.0))
    parts = [f"{never} never"] * bool(never) + [f"{slowest:.1f} s (of {limit:g})"] * bool(times)
    return ", ".join(parts) or "gone"


def _short(sentence: str) -> str:
    cut = _FOLDER.sub("ipc://…/", " ".join(sentence.replace("|", "/").split()))
    return cut if len(cut) <= SENTENCE else f"{cut[: SENTENCE - 1]}…"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
