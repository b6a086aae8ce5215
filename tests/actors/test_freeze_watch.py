"""`actors.freeze_watch`: frozen processes are found in time, and no others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.freeze_watch import COMPUTING_S, LATE_S, LOOK_EVERY_S, REPLY_S, SILENT_S, FreezeWatch, Sight

pauses = st.lists(st.floats(LOOK_EVERY_S, LOOK_EVERY_S + LATE_S), min_size=100, max_size=100)


def first_end(sight: Callable[[float], Sight], seconds: int = 100) -> tuple[int, float] | None:
    """Look once a second; return when a process was found frozen, and after how long a silence."""
    watch = FreezeWatch()
    for now in range(1, seconds):
        if limit := watch.look(now, now, {"node": sight(now)}).get("node"):
            return now, limit
    return None


def test_silent_idle_process_is_frozen_in_time() -> None:
    assert first_end(lambda now: Sight(7, max(now - 10.3, 0.3), min(now, 10.3))) == (
        17,
        SILENT_S,
    )  # it computed until 11


def test_silent_computing_process_has_a_minute() -> None:
    assert first_end(lambda now: Sight(7, max(now - 10.0, 0.0), now)) == (70, COMPUTING_S)


def test_silent_process_that_waits_for_a_processor_has_a_minute() -> None:
    assert first_end(lambda now: Sight(7, max(now - 10.0, 0.0), 1.0, is_ready=True)) == (70, COMPUTING_S)


def test_process_that_stops_computing_has_its_time() -> None:
    assert first_end(lambda now: Sight(7, max(now - 10.0, 0.0), min(now, 20.0))) == (26, SILENT_S)


def test_hub_that_never_replies_is_frozen() -> None:
    assert first_end(lambda now: Sight(7, float("inf"), 1.0)) == (7, SILENT_S)  # the first look is at 1


def test_freeze_of_four_seconds_is_survived() -> None:
    """The actor registers each second, last just before the freeze, and again at its end."""
    silent = {11 + tenth / 10: 0.999 + tenth / 10 for tenth in range(40)}
    for begun in range(10):
        watch = FreezeWatch()
        for number in range(30):
            now = number + begun / 10
            sights = {"gateway": Sight(7, silent.get(round(now, 1), 0.5), 1.0)}
            assert watch.look(now, now, sights) == {}


@given(pauses, st.floats(0.0, 3.0))
def test_process_that_is_heard_is_never_frozen(gaps: list[float], silent_s: float) -> None:
    watch, now = FreezeWatch(), 0.0
    for gap in gaps:
        now += gap
        assert watch.look(now, now, {"node": Sight(7, silent_s, 1.0)}) == {}


@pytest.mark.parametrize(("before", "during"), [(LOOK_EVERY_S + LATE_S, 0.0), (LOOK_EVERY_S, REPLY_S + LATE_S)])
def test_nothing_is_killed_at_a_thaw(before: float, during: float) -> None:
    watch = FreezeWatch()
    for now in range(10):
        watch.look(now, now, {"node": Sight(7, 0.5, 1.0)})
    begun = 9 + before + 0.1
    thawed = begun + during + 0.1
    for later in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0):  # the process, thawed later, has not been heard yet
        frozen = watch.look(max(begun, thawed + later - 0.1), thawed + later, {"node": Sight(7, 60.0, 1.0)})
        assert frozen == {}
    assert watch.look(thawed + 5.5, thawed + 5.5, {"node": Sight(7, 60.0, 1.0)}) == {"node": SILENT_S}


def test_new_process_and_one_out_of_sight_have_new_clocks() -> None:
    watch = FreezeWatch()
    silent = {"node": Sight(7, 100.0, 1.0)}
    for now, sights in ((1, silent), (2, silent), (3, silent), (4, {}), (5, silent), (6, silent), (7, silent)):
        assert watch.look(now, now, sights) == {}
    another = {"node": Sight(8, 100.0, 1.0)}
    for now in (8, 9, 10, 11, 12, 13):
        assert watch.look(now, now, another) == {}
    assert watch.look(14, 14, another) == {"node": SILENT_S}
