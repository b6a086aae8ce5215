"""`gateway.core.retries`: which failures are tried again, how often and for how long."""

from __future__ import annotations

import pytest

from cluster.failures import FailureCode
from gateway.core.errors import GatewayCode, GatewayError, error_of_failure, unavailable
from gateway.core.retries import MAX_LOSSES, PAUSES_S, RETRY_FOR_S, Retries
from gateway.core.session import SessionFailed


def pauses(failure: SessionFailed | GatewayError) -> list[float]:
    """Return the pauses between tries that fail at once, always for the same reason."""
    retries, now, found = Retries(), 100.0, []
    while (pause := retries.pause_s(failure, now)) is not None:
        found.append(pause)
        now += pause
    return found


def test_unreachable_actor_is_tried_again_for_some_seconds() -> None:
    found = pauses(unavailable(FailureCode.UNDELIVERABLE, "no actor 'node' answers"))
    assert found[: len(PAUSES_S)] == list(PAUSES_S)
    assert RETRY_FOR_S - max(PAUSES_S) < sum(found) <= RETRY_FOR_S


def test_request_is_given_up_if_stages_keep_ending() -> None:
    assert len(pauses(SessionFailed(FailureCode.NODE_LOST, "engine-1 ended"))) == MAX_LOSSES


@pytest.mark.parametrize("code", [FailureCode.REPLACED, FailureCode.SESSION_LOST, FailureCode.STAGE_FAILED])
def test_other_failures_may_be_repeated_more_often(code: FailureCode) -> None:
    assert len(pauses(SessionFailed(code, "no"))) > MAX_LOSSES


@pytest.mark.parametrize("code", [code for code in FailureCode if not code.transient])
def test_lasting_failure_is_reported_at_once(code: FailureCode) -> None:
    assert pauses(SessionFailed(code, "no")) == []
    assert pauses(error_of_failure(code, "no")) == []


def test_failure_of_the_gateway_itself_is_reported_at_once() -> None:
    assert pauses(unavailable(GatewayCode.TEMPLATE_UNAVAILABLE, "no")) == []


def test_time_counts_from_the_first_failure() -> None:
    retries, failure = Retries(), SessionFailed(FailureCode.SESSION_LOST, "lost")
    assert retries.pause_s(failure, 1000.0) is not None
    assert retries.pause_s(failure, 1000.0 + RETRY_FOR_S - 1.0) is not None
    assert retries.pause_s(failure, 1000.0 + RETRY_FOR_S) is None
