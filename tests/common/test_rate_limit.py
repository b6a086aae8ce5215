"""`common.rate_limit`: bounded rates in bounded memory, with the time passed in."""

from __future__ import annotations

import logging
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.rate_limit import MAX_KEYS, RateLimit, RateLimitedLogger, TokenBuckets

# -- token buckets


def allowed(buckets: TokenBuckets, key: str, now: float, times: int) -> int:
    return sum(buckets.allow(key, now) for _ in range(times))


def test_burst_is_as_large_as_the_rate() -> None:
    buckets = TokenBuckets(20, 8)
    assert allowed(buckets, "one", 5.0, 100) == 20
    assert allowed(buckets, "one", 5.5, 100) == 10
    assert allowed(buckets, "one", 500.0, 100) == 20


def test_steady_flood_passes_at_the_rate() -> None:
    buckets = TokenBuckets(20, 8)
    assert sum(buckets.allow("one", tick / 5000) for tick in range(50_000)) == pytest.approx(220, abs=2)


def test_each_key_has_its_own_bucket() -> None:
    buckets = TokenBuckets(20, 8)
    allowed(buckets, "one", 0.0, 100)
    assert allowed(buckets, "other", 0.0, 100) == 20


def test_new_keys_are_refused_until_another_is_idle() -> None:
    buckets = TokenBuckets(20, 8)
    assert [buckets.allow(f"key {n}", 0.0) for n in range(10)] == [True] * 8 + [False] * 2
    assert buckets.allow("key 0", 0.9)
    assert buckets.allow("key 9", 1.0)
    assert len(buckets) == 2


# -- one event in each interval


def test_second_event_waits_for_the_interval() -> None:
    limit = RateLimit(10.0)
    assert [limit.pass_on("key", now) for now in (0.0, 0.0, 9.9, 10.0, 15.0, 30.0)] == [0, None, None, 2, None, 1]


def test_keys_are_limited_separately() -> None:
    limit = RateLimit(10.0)
    assert [limit.pass_on(key, 1.0) for key in "abab"] == [0, 0, None, None]


def test_keys_beyond_the_bound_share_one_entry() -> None:
    limit = RateLimit(10.0)
    passed = [limit.pass_on(str(number), 1.0) for number in range(10_000)]
    assert passed.count(0) == MAX_KEYS + 1
    assert len(limit._passed) == MAX_KEYS + 1
    assert limit.pass_on("new", 12.0) == 10_000 - MAX_KEYS - 1


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 30)), max_size=60))
def test_every_event_passes_or_is_counted(calls: list[tuple[str, float]]) -> None:
    limit = RateLimit(5.0)
    calls = sorted(calls, key=lambda call: call[1])
    passed = [(key, now, limit.pass_on(key, now)) for key, now in calls]
    last = [limit.pass_on(key, 100.0) for key in "ab"]
    counts = [count for _, _, count in passed if count is not None]
    assert sum(counts) + len(counts) + sum(count or 0 for count in last) == len(calls)
    for key in "ab":
        moments = [now for which, now, count in passed if which == key and count is not None]
        assert all(later - earlier >= 5.0 for earlier, later in pairwise(moments))


def test_log_line_counts_suppressed_lines(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    limited = RateLimitedLogger(logging.getLogger("here"), 60.0, lambda: now[0])
    for _ in range(5):
        limited.warning("key", "dropped a frame of %s", "ada")
    now[0] = 61.0
    limited.warning("key", "dropped a frame of %s", "ada")
    assert [record.getMessage() for record in caplog.records] == [
        "dropped a frame of ada",
        "dropped a frame of ada (and 4 more)",
    ]
