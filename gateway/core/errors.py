"""What a client is told when a request fails: OpenAI's error shape as an exception. No HTTP here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bus.client import RequestError
from cluster.failures import FailureCode

INVALID = "invalid_request_error"
SERVER = "server_error"
RETRY_AFTER_S = 2
DO_NOT_RETRY = {"x-should-retry": "false"}
CLOSE = {"connection": "close"}  # what else comes on this connection is no request


class ApiError(Exception):
    """A refusal or a failure: HTTP status, one sentence, and what a program may act on."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """`{"error": {message, type, param, code}}`."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def unavailable(code: str, message: str, retry_after_s: int = 0) -> ApiError:
    """503: the same request may work in `retry_after_s` seconds (0: in a moment)."""
    return ApiError(503, message, kind=SERVER, code=code, headers=_retry_after(retry_after_s))


def queue_full(message: str, retry_after_s: int = 0) -> ApiError:
    """429: too much at one time; ask again in `retry_after_s` seconds (0: soon)."""
    return ApiError(429, message, kind="rate_limit_error", code="queue_full", headers=_retry_after(retry_after_s))


def too_large(message: str, param: str) -> ApiError:
    """400: more than the memory of the ring holds, however long one waits."""
    return ApiError(400, message, code="too_large", param=param, headers=DO_NOT_RETRY)


def no_key(message: str) -> ApiError:
    """401: an API key is wanted, and none came or one that is not known."""
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def too_many_attempts(seconds: int) -> ApiError:
    """429: too many wrong keys from one address."""
    sentence = f"too many wrong API keys came from your address; try again in {seconds} s"
    return ApiError(429, sentence, kind="rate_limit_error", code="too_many_attempts", headers=_retry_after(seconds))


def too_slow() -> ApiError:
    """408: the body did not come in time."""
    return ApiError(408, "the body did not come in time; send it faster", code="timeout", headers=CLOSE)


def _retry_after(seconds: int) -> dict[str, str]:
    """The header of HTTP, and the one that OpenAI's clients look for first."""
    asked = seconds or RETRY_AFTER_S
    return {"retry-after": str(asked), "retry-after-ms": str(asked * 1000)}


def internal() -> ApiError:
    """500: a fault of ours; the log has what happened, the client only where to look."""
    return ApiError(
        500, "the gateway failed at this request; see its log on the node", kind=SERVER, code="internal_error"
    )


def from_bus(error: RequestError) -> ApiError:
    """What an actor answered, as a client should see it."""
    if error.code == FailureCode.MODEL_NOT_FOUND:
        return model_not_found(error.message)
    if error.code == FailureCode.INSUFFICIENT_MEMORY:
        return ApiError(400, error.message, code=error.code, param="model", headers=DO_NOT_RETRY)
    if error.code == FailureCode.FORBIDDEN:
        return ApiError(403, error.message, code=error.code, headers=DO_NOT_RETRY)
    if error.code == FailureCode.INTERNAL:
        return ApiError(500, error.message, kind=SERVER, code="internal_error")
    return unavailable(error.code, error.message)


def model_not_found(message: str) -> ApiError:
    """404 for a model that no card describes."""
    return ApiError(404, message, code="model_not_found", param="model")
