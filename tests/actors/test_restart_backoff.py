"""When a process that ended is started again."""

from __future__ import annotations

from actors.restart_backoff import BURST, BURST_WINDOW_S, HEALTHY_AFTER_S, MAX_PAUSE_S, RestartBackoff


def test_pauses_double_from_a_tenth_of_a_second() -> None:
    restarts, pauses = RestartBackoff(), []
    for now in range(4):
        restarts = restarts.died(float(now), lived_s=0.1)
        pauses.append(restarts.pause)
    assert pauses == [0.1, 0.2, 0.4, 0.8]


def test_pauses_have_a_limit() -> None:
    restarts = RestartBackoff()
    for now in range(20):
        restarts = restarts.died(now * BURST_WINDOW_S, lived_s=1.0)
    assert restarts.pause == MAX_PAUSE_S


def test_long_lifetime_resets_the_pause() -> None:
    restarts = RestartBackoff()
    for now in range(3):
        restarts = restarts.died(float(now), lived_s=0.1)
    assert restarts.died(500.0, lived_s=HEALTHY_AFTER_S).pause == RestartBackoff().pause


def test_burst_of_deaths_exhausts_the_restarts() -> None:
    restarts = RestartBackoff()
    for number in range(BURST):
        assert not restarts.exhausted
        restarts = restarts.died(float(number), lived_s=0.1)
    assert restarts.exhausted


def test_deaths_far_apart_never_exhaust_the_restarts() -> None:
    restarts = RestartBackoff()
    for number in range(100):
        restarts = restarts.died(number * BURST_WINDOW_S / (BURST - 1), lived_s=1.0)
        assert not restarts.exhausted
