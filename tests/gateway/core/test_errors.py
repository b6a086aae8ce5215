"""`gateway.core.errors`: the errors of a client for failures of actors and sessions."""

from __future__ import annotations

import pytest

from bus.client import RequestError
from cluster.failures import FailureCode
from gateway.core.errors import (
    ErrorKind,
    GatewayCode,
    RequestField,
    error_of_request,
    error_of_session,
)
from gateway.core.session import SessionFailed


@pytest.mark.parametrize(
    ("code", "kind", "retryable"),
    [
        (FailureCode.MODEL_NOT_FOUND, ErrorKind.NOT_FOUND, None),
        (FailureCode.INSUFFICIENT_MEMORY, ErrorKind.TOO_LARGE, False),
        (FailureCode.FORBIDDEN, ErrorKind.FORBIDDEN, False),
        (FailureCode.UNDELIVERABLE, ErrorKind.UNAVAILABLE, True),
        (FailureCode.DOWNLOAD_FAILED, ErrorKind.UNAVAILABLE, True),
        (FailureCode.NO_ENGINE, ErrorKind.UNAVAILABLE, False),
        (FailureCode.WRONG_CARD, ErrorKind.INTERNAL, False),
    ],
)
def test_failed_request_keeps_its_code_and_sentence(code: FailureCode, kind: ErrorKind, retryable: bool | None) -> None:
    error = error_of_request(RequestError(code, "a sentence"))
    assert (error.kind, error.code, error.message, error.retryable) == (kind, code, "a sentence", retryable)


def test_fault_of_an_actor_is_an_internal_error() -> None:
    error = error_of_request(RequestError(FailureCode.INTERNAL, "see its log"))
    assert (error.kind, error.code) == (ErrorKind.INTERNAL, GatewayCode.INTERNAL_ERROR)


def test_failure_before_the_first_token_gives_retry_after() -> None:
    error = error_of_session(SessionFailed(FailureCode.STAGE_FAILED, "a sentence", 3), begun=False)
    assert (error.kind, error.retryable, error.retry_after_s) == (ErrorKind.UNAVAILABLE, True, 3)


def test_failure_after_a_token_is_not_retryable() -> None:
    error = error_of_session(SessionFailed(FailureCode.STAGE_FAILED, "a sentence", 3), begun=True)
    assert (error.kind, error.code, error.retryable) == (ErrorKind.INTERNAL, FailureCode.STAGE_FAILED, False)


@pytest.mark.parametrize("begun", [False, True])
def test_queue_refusal_is_independent_of_other_choices(begun: bool) -> None:
    full = error_of_session(SessionFailed(FailureCode.QUEUE_FULL, "a sentence", 7), begun=begun)
    assert (full.kind, full.retryable, full.retry_after_s) == (ErrorKind.RATE_LIMITED, True, 7)
    large = error_of_session(SessionFailed(FailureCode.TOO_LARGE, "a sentence"), begun=begun)
    assert (large.kind, large.retryable, large.field) == (ErrorKind.TOO_LARGE, False, RequestField.MAX_TOKENS)
