"""OpenAI's error shape."""

from __future__ import annotations

from typing import Any

from gateway.core.errors import ErrorKind, GatewayError, RequestField

_TYPES = {
    ErrorKind.RATE_LIMITED: "rate_limit_error",
    ErrorKind.UNAVAILABLE: "server_error",
    ErrorKind.INTERNAL: "server_error",
}
_PARAMS = {
    RequestField.MODEL: "model",
    RequestField.PROMPT: "messages",
    RequestField.MAX_TOKENS: "max_tokens",
}


class FieldError(GatewayError):
    """A body that is not a valid request; `param` is the path of the field at fault."""

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(ErrorKind.INVALID_REQUEST, message, code=code)
        self.param = param


def error_body(error: GatewayError) -> dict[str, Any]:
    """Return `{"error": {message, type, param, code}}`."""
    param = error.param if isinstance(error, FieldError) else error.field and _PARAMS[error.field]
    kind = _TYPES.get(error.kind, "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": param, "code": error.code}}
