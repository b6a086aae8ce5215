"""Why a request fails, independent of any API: a closed set of kinds, a stable code, and one sentence.

An API family writes the error in its own shape; `gateway.http.errors` gives each kind its status.
"""

from __future__ import annotations

from enum import Enum, StrEnum, auto

from bus.client import RequestError
from cluster.failures import FailureCode
from gateway.core.session import SessionFailed


class ErrorKind(Enum):
    """What sort of failure it is, and so what a client can do about it."""

    INVALID_REQUEST = auto()
    NOT_FOUND = auto()
    TOO_LARGE = auto()  # more than the model or its ring can ever hold
    UNAUTHENTICATED = auto()
    FORBIDDEN = auto()
    RATE_LIMITED = auto()
    UNAVAILABLE = auto()
    INTERNAL = auto()


class RequestField(Enum):
    """The field of a `GenerationRequest` that an error is about."""

    MODEL = auto()
    PROMPT = auto()
    MAX_TOKENS = auto()


class GatewayCode(StrEnum):
    """The codes of failures that arise in the gateway itself; those of other actors are `FailureCode`s."""

    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    INTERNAL_ERROR = "internal_error"
    INVALID_API_KEY = "invalid_api_key"
    TEMPLATE_UNAVAILABLE = "template_unavailable"
    TOO_MANY_ATTEMPTS = "too_many_attempts"


class GatewayError(Exception):
    """A request was refused or failed.

    `message` is one sentence with the next step, `code` a stable word for programs. `retryable` says whether the same
    request may succeed later; None leaves that to the client's own rules. `retry_after_s` is when to try, 0 if that
    is not known.
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        code: str | None = None,
        field: RequestField | None = None,
        retryable: bool | None = None,
        retry_after_s: int = 0,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.code = code
        self.field = field
        self.retryable = retryable
        self.retry_after_s = retry_after_s


def unavailable(code: str, message: str) -> GatewayError:
    """Return the error of something that fails now and may work in a moment."""
    return GatewayError(ErrorKind.UNAVAILABLE, message, code=code, retryable=True)


def model_not_found(message: str) -> GatewayError:
    """Return the error of a model that no card describes."""
    code, field = FailureCode.MODEL_NOT_FOUND, RequestField.MODEL
    return GatewayError(ErrorKind.NOT_FOUND, message, code=code, field=field)


def queue_full(message: str) -> GatewayError:
    """Return the error of too many requests at a time."""
    return GatewayError(ErrorKind.RATE_LIMITED, message, code=FailureCode.QUEUE_FULL, retryable=True)


def internal() -> GatewayError:
    """Return the error for a fault of the gateway itself: its log has the cause, which the client is not shown."""
    sentence = "the gateway failed at this request; see its log on the node"
    return GatewayError(ErrorKind.INTERNAL, sentence, code=GatewayCode.INTERNAL_ERROR)


_KINDS = {
    FailureCode.FORBIDDEN: ErrorKind.FORBIDDEN,
    FailureCode.INSUFFICIENT_MEMORY: ErrorKind.TOO_LARGE,
    FailureCode.QUEUE_FULL: ErrorKind.RATE_LIMITED,
    FailureCode.TOO_LARGE: ErrorKind.TOO_LARGE,
    FailureCode.WRONG_CARD: ErrorKind.INTERNAL,
}
"""The kinds of failures that are not merely UNAVAILABLE."""

_FIELDS = {
    FailureCode.INSUFFICIENT_MEMORY: RequestField.MODEL,
    FailureCode.TOO_LARGE: RequestField.MAX_TOKENS,
}


def error_of_failure(code: FailureCode, message: str, retry_after_s: int = 0) -> GatewayError:
    """Return a failure of an actor or a stage as a client should see it."""
    if code is FailureCode.MODEL_NOT_FOUND:
        return model_not_found(message)
    if code is FailureCode.INTERNAL:
        return GatewayError(ErrorKind.INTERNAL, message, code=GatewayCode.INTERNAL_ERROR)
    return GatewayError(
        _KINDS.get(code, ErrorKind.UNAVAILABLE),
        message,
        code=code,
        field=_FIELDS.get(code),
        retryable=code.retryable,
        retry_after_s=retry_after_s,
    )


def error_of_request(error: RequestError) -> GatewayError:
    """Return the failure of work that was requested on the bus."""
    return error_of_failure(error.code, error.message)


def error_of_session(error: SessionFailed, *, begun: bool) -> GatewayError:
    """Return the failure of a session.

    If tokens have come already (`begun`), the client has a part of the text and must learn that the rest is missing;
    a retry would not continue it.
    """
    if begun and error.code not in (FailureCode.QUEUE_FULL, FailureCode.TOO_LARGE):
        return GatewayError(ErrorKind.INTERNAL, error.message, code=error.code, retryable=False)
    return error_of_failure(error.code, error.message, error.retry_after_s)
