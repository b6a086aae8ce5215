"""How often somebody may do something, with time handed in."""

from __future__ import annotations

import pytest

from common.token_bucket import TokenBuckets


def allowed(buckets: TokenBuckets, key: str, now: float, times: int) -> int:
    return sum(buckets.allow(key, now) for _ in range(times))


def test_as_many_at_once_as_in_a_second() -> None:
    buckets = TokenBuckets(20, 8)
    assert allowed(buckets, "one", 5.0, 100) == 20
    assert allowed(buckets, "one", 5.5, 100) == 10
    assert allowed(buckets, "one", 500.0, 100) == 20


def test_a_steady_flood_gets_the_rate_and_no_more() -> None:
    buckets = TokenBuckets(20, 8)
    assert sum(buckets.allow("one", tick / 5000) for tick in range(50_000)) == pytest.approx(220, abs=2)


def test_one_uses_up_nothing_of_another() -> None:
    buckets = TokenBuckets(20, 8)
    allowed(buckets, "one", 0.0, 100)
    assert allowed(buckets, "other", 0.0, 100) == 20


def test_places_are_bounded_and_come_back_with_silence() -> None:
    buckets = TokenBuckets(20, 8)
    assert [buckets.allow(f"key {n}", 0.0) for n in range(10)] == [True] * 8 + [False] * 2
    assert buckets.allow("key 0", 0.9)
    assert buckets.allow("key 9", 1.0)
    assert len(buckets) == 2
