"""Log lines that others can cause: few of them, none lost from the count, and a bounded memory."""

from __future__ import annotations

import logging
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.rate_limit import MOST_KEYS, RateLimit, RateLimitedLogger


def test_the_first_passes_and_the_next_waits_for_its_time() -> None:
    limit = RateLimit(10.0)
    assert [limit.pass_on("key", now) for now in (0.0, 0.0, 9.9, 10.0, 15.0, 30.0)] == [0, None, None, 2, None, 1]


def test_keys_do_not_wait_for_one_another() -> None:
    limit = RateLimit(10.0)
    assert [limit.pass_on(key, 1.0) for key in "abab"] == [0, 0, None, None]


def test_a_flood_of_keys_passes_no_more_than_the_bound_and_one() -> None:
    limit = RateLimit(10.0)
    passed = [limit.pass_on(str(number), 1.0) for number in range(10_000)]
    assert passed.count(0) == MOST_KEYS + 1
    assert len(limit._said) == MOST_KEYS + 1
    assert limit.pass_on("new", 12.0) == 10_000 - MOST_KEYS - 1


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 30)), max_size=60))
def test_every_one_passes_or_is_counted_by_a_later_one(calls: list[tuple[str, float]]) -> None:
    limit = RateLimit(5.0)
    calls = sorted(calls, key=lambda call: call[1])
    passed = [(key, now, limit.pass_on(key, now)) for key, now in calls]
    last = [limit.pass_on(key, 100.0) for key in "ab"]
    said = [count for _, _, count in passed if count is not None]
    assert sum(said) + len(said) + sum(count or 0 for count in last) == len(calls)
    for key in "ab":
        moments = [now for which, now, count in passed if which == key and count is not None]
        assert all(later - earlier >= 5.0 for earlier, later in pairwise(moments))


def test_a_line_says_how_many_there_were(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    limited = RateLimitedLogger(logging.getLogger("here"), 60.0, lambda: now[0])
    for _ in range(5):
        limited.warning("key", "%s knocks", "somebody")
    now[0] = 61.0
    limited.warning("key", "%s knocks", "somebody")
    assert [record.getMessage() for record in caplog.records] == ["somebody knocks", "somebody knocks (and 4 more)"]
