"""When a cell misses the goal, and what the tables say of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.faults import table
from tests.faults.cells import KILL, Cell, Fault, Load, Place, Target
from tests.faults.seen import AnswerSeen, CellSeen, End, StreamSeen, deadline_s, misses

STOP = Fault("stop", 30.0)
GOOD = CellSeen(
    "cell",
    stream_here=StreamSeen(End.COMPLETE, 3.0),
    stream_there=StreamSeen(End.ERROR, 1.9, "node_lost: node first is gone; try again"),
    answer_here=AnswerSeen(1.3),
    answer_there=AnswerSeen(0.4, failures=1, sentence="503 no actor"),
)


def cell(target: Target = Target.HUB, fault: Fault = KILL, load: Load = Load.STREAM) -> Cell:
    return Cell(2, Place.FIRST, target, True, fault, load)


def but(**changes: Any) -> CellSeen:
    return msgspec.structs.replace(GOOD, **changes)


def test_good_cell_misses_nothing() -> None:
    assert misses(cell(), GOOD) == ()
    assert misses(cell(), but(stream_here=StreamSeen(End.RUNNING, 30.0))) == ()


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({"stream_here": StreamSeen(End.WRONG, 3.0)}, "stream at the victim's gateway: wrong text"),
        ({"stream_here": StreamSeen(End.SILENT, 40.0)}, "stream at the victim's gateway: nothing for 40 s"),
        ({"stream_there": StreamSeen(End.ERROR, 10.1)}, "stream at another gateway: ended after 10.1 s"),
        ({"stream_there": StreamSeen(End.CUT, 0.1)}, "stream at another gateway: cut without a sentence after 0.1 s"),
        ({"answer_here": AnswerSeen(10.1)}, "next answer at the victim's gateway: after 10.1 s"),
        ({"answer_there": AnswerSeen(None, 30.0)}, "next answer at another gateway: none in 30 s"),
        ({"answer_there": AnswerSeen(1.0, wrong=True)}, "next answer at another gateway: wrong text"),
        ({"left": ("first: engines 2, stages 1",)}, "left over: first: engines 2, stages 1"),
        ({"void": "no traffic flowed"}, "void: no traffic flowed"),
    ],
)
def test_each_fault_of_a_cell_is_named(changes: dict[str, Any], missed: str) -> None:
    assert misses(cell(), but(**changes)) == (missed,)


@pytest.mark.parametrize("target", [Target.GATEWAY, Target.SUPERVISOR, Target.NODE])
def test_killed_gateway_may_cut_its_own_streams_only(target: Target) -> None:
    cut = StreamSeen(End.CUT, 0.1)
    assert misses(cell(target), but(stream_here=cut)) == ()
    assert misses(cell(target), but(stream_there=cut))
    assert misses(cell(target, Fault("stop", 4.0)), but(stream_here=cut))


@pytest.mark.parametrize(
    ("target", "fault", "load", "here", "there"),
    [
        (Target.HUB, KILL, Load.IDLE, 10, 10),
        (Target.HUB, STOP, Load.IDLE, 40, 10),
        (Target.ENGINE, STOP, Load.STREAM, 40, 40),
        (Target.DISCOVERY, STOP, Load.IDLE, 10, 10),
        (Target.NODE, STOP, Load.QUIET, 10, 10),
        (Target.CABLE, Fault("cut", 30.0), Load.IDLE, 10, 10),
    ],
)
def test_only_what_needs_a_frozen_process_waits_for_it(
    target: Target, fault: Fault, load: Load, here: float, there: float
) -> None:
    hit = cell(target, fault, load)
    assert (deadline_s(hit, here=True), deadline_s(hit, here=False)) == (here, there)


def test_row_tells_what_the_clients_saw() -> None:
    assert table.full([(cell(), GOOD)]).splitlines()[-1] == (
        "| 2 | hub kill | first, the placer | stream | whole "
        "| error after 1.9 s: node_lost: node first is gone; try again | 1.3 s | 0.4 s after 1 failed | nothing | met |"
    )


def test_skipped_cell_misses_nothing() -> None:
    skipped = CellSeen("cell", skipped="network namespaces need root")
    assert misses(cell(), skipped) == ()
    assert "| skipped: network namespaces need root |" in table.full([(cell(), skipped)])


def test_row_of_a_void_cell_gives_the_reason() -> None:
    assert "| void: no traffic flowed |" in table.full([(cell(), but(void="no traffic flowed"))])


def test_summary_gives_the_worst_of_each_fault() -> None:
    slow = but(answer_here=AnswerSeen(12.0), left=("first: engines 2, stages 1",))
    never = but(answer_there=AnswerSeen(None, 30.0), stream_here=None, stream_there=None)
    rows = table.summary([(cell(), GOOD), (cell(), slow), (cell(load=Load.IDLE), never)]).splitlines()
    assert rows[2:] == [
        "| hub kill | 3 | 2 complete, 2 error | 12.0 s (of 10) | 1 never, 0.4 s (of 10) | engines 2, stages 1 | 2 |"
    ]


def test_sentences_do_not_break_the_table() -> None:
    long = but(stream_there=StreamSeen(End.ERROR, 1.0, "a | b\n" + "c" * 100))
    row = table.full([(cell(), long)]).splitlines()[-1]
    assert row.count(" | ") == len(table.HEAD) - 1
    assert "…" in row
