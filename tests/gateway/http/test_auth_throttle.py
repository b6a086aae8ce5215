"""`gateway.http.auth_throttle`: how many wrong keys a client may try."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.http.auth_throttle import AuthThrottle, client_of


def test_tenth_wrong_key_blocks_for_a_minute() -> None:
    throttle = AuthThrottle()
    for second in range(10):
        assert throttle.wait_s("192.0.2.1", second) == 0
        throttle.record_failure("192.0.2.1", second)
    assert throttle.wait_s("192.0.2.1", 10) == 50
    assert throttle.wait_s("192.0.2.1", 59.5) == 1
    assert throttle.wait_s("192.0.2.1", 60) == 0
    assert throttle.wait_s("192.0.2.2", 10) == 0


@given(st.lists(st.floats(0, 20), max_size=200))
def test_no_minute_has_more_than_ten_wrong_keys(pauses: list[float]) -> None:
    throttle, now, failures = AuthThrottle(), 0.0, []
    for pause in pauses:
        now += pause
        if not throttle.wait_s("192.0.2.1", now):
            throttle.record_failure("192.0.2.1", now)
            failures.append(now)
    assert all(later - first >= 60 - 1e-6 for first, later in zip(failures, failures[10:], strict=False))


def test_address_table_is_bounded() -> None:
    throttle = AuthThrottle(most=1, addresses=3)
    for last in range(1, 6):
        throttle.record_failure(f"192.0.2.{last}", last)
    assert len(throttle) == 3
    assert [throttle.wait_s(f"192.0.2.{last}", 6.0) > 0 for last in range(1, 6)] == [False, False, True, True, True]


def test_one_machine_counts_as_one_client() -> None:
    assert client_of("2001:db8:1:2::1") == client_of("2001:db8:1:2:ffff::9") != client_of("2001:db8:1:3::1")
    assert client_of("::ffff:192.0.2.1") == client_of("192.0.2.1") == "192.0.2.1"
