"""Errors over HTTP: the status and headers of each kind of error. The body is written by an API family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ExceptionHandler, Scope

from gateway.core.errors import ErrorKind, GatewayError, internal
from gateway.http.api_family import ApiFamily
from gateway.http.json_response import JsonResponse, encode_json

STATUS = {
    ErrorKind.INVALID_REQUEST: 400,
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.TOO_LARGE: 400,
    ErrorKind.UNAUTHENTICATED: 401,
    ErrorKind.FORBIDDEN: 403,
    ErrorKind.RATE_LIMITED: 429,
    ErrorKind.UNAVAILABLE: 503,
    ErrorKind.INTERNAL: 500,
}
RETRY_AFTER_S = 2  # if the error does not say when
CLOSE = {"connection": "close"}  # what follows on the connection cannot be read as a request


class HttpError(GatewayError):
    """A request that HTTP itself rules out; it has a status, and headers, of its own."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(ErrorKind.INVALID_REQUEST, message, code=code)
        self.status = status
        self.headers = dict(headers or {})


def status_of(error: GatewayError) -> int:
    """Return the HTTP status of an error."""
    return error.status if isinstance(error, HttpError) else STATUS[error.kind]


def headers_of(error: GatewayError) -> dict[str, str]:
    """Return the headers of an error.

    `retry-after-ms` and `x-should-retry` are what OpenAI's clients look at before the standard `retry-after`.
    """
    if isinstance(error, HttpError):
        return error.headers
    if error.kind is ErrorKind.UNAUTHENTICATED:
        return {"www-authenticate": "Bearer"}
    if error.retryable is None:
        return {}
    if not error.retryable:
        return {"x-should-retry": "false"}
    seconds = error.retry_after_s or RETRY_AFTER_S
    return {"retry-after": str(seconds), "retry-after-ms": str(seconds * 1000)}


class ErrorResponses:
    """Error responses in the shape of the family that has the requested route; of no route, in the first family's."""

    def __init__(self, families: Sequence[ApiFamily]) -> None:
        self._families = families

    def response(self, scope: Scope, error: GatewayError) -> Response:
        """Return the response to a request that failed."""
        matching = (
            family for family in self._families for route in family.routes if route.matches(scope)[0] is not Match.NONE
        )
        body = next(matching, self._families[0]).error_body(error)
        return JsonResponse(body, status_of(error), headers_of(error))

    def body(self, error: GatewayError) -> bytes:
        """Return the body for what is not even a request, in the first family's shape."""
        return encode_json(self._families[0].error_body(error))

    def handlers(self) -> dict[Any, ExceptionHandler]:
        """Return what Starlette calls for an exception that a route raises before its response begins."""

        async def refused(request: Request, error: Exception) -> Response:
            assert isinstance(error, GatewayError)
            return self.response(request.scope, error)

        async def no_route(request: Request, error: Exception) -> Response:
            assert isinstance(error, HTTPException)
            called = f"{request.method} {request.url.path}"
            allowed = (error.headers or {}).get("Allow", "")
            sentence = (
                f"{called} is not served here; use {allowed}" if allowed else f"there is no {called}; see /v1/models"
            )
            return self.response(request.scope, HttpError(error.status_code, sentence, headers=error.headers))

        async def failed(request: Request, error: Exception) -> Response:
            return self.response(request.scope, internal())  # Starlette raises it again, and the server logs it

        async def disconnected(request: Request, error: Exception) -> Response:
            return Response(status_code=408)  # the client is gone before its body was complete

        return {
            GatewayError: refused,
            ClientDisconnect: disconnected,
            HTTPException: no_route,
            Exception: failed,
        }
