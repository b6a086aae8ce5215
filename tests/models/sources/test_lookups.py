"""Clients that type names cannot make a node ask the hub without end."""

from __future__ import annotations

from contextlib import ExitStack, suppress

import pytest

from models.errors import DownloadError, NotOnHub
from models.sources.lookups import LOOKUPS_PER_S, MAX_LOOKUPS, REFUSED_S, Lookups, TooManyLookups


class Clock:
    """A time that tests set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def refuse(lookups: Lookups, error: DownloadError) -> None:
    """Run a lookup of a/b that fails with this error."""
    with suppress(type(error)), lookups.lookup("a/b"):
        raise error


def test_refused_name_is_not_looked_up_for_a_minute() -> None:
    lookups = Lookups(clock := Clock())
    refuse(lookups, NotOnHub("not there"))
    clock.now += REFUSED_S - 1
    with pytest.raises(NotOnHub, match="not there"), lookups.lookup("a/b"):
        raise AssertionError("it was looked up")
    with lookups.lookup("a/c"):
        clock.now += 1
    with lookups.lookup("a/b"):
        pass


def test_failure_that_passes_is_tried_again() -> None:
    lookups = Lookups(Clock())
    refuse(lookups, DownloadError("away"))
    with lookups.lookup("a/b"):
        pass


def test_lookups_at_a_time_are_bounded() -> None:
    lookups = Lookups(clock := Clock())
    with ExitStack() as running:
        for number in range(MAX_LOOKUPS):
            running.enter_context(lookups.lookup(f"a/{number}"))
            clock.now += 1
        with pytest.raises(TooManyLookups, match="ask for a/b again in a few seconds"), lookups.lookup("a/b"):
            raise AssertionError("it was looked up")
    with lookups.lookup("a/b"):
        pass


def test_lookups_a_second_are_bounded() -> None:
    lookups, begun = Lookups(clock := Clock()), 0
    for number in range(40 * 10):
        clock.now += 0.1
        with ExitStack() as running:
            for name in range(10):
                try:
                    running.enter_context(lookups.lookup(f"a/{number}-{name}"))
                except TooManyLookups:
                    continue
                begun += 1
    assert begun <= LOOKUPS_PER_S * (40 + 1)
