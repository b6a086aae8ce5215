"""`gateway.http.errors`: the status and headers of every kind of error, and the shape of the family that was called."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.core.errors import ErrorKind, GatewayError
from gateway.http.errors import STATUS, ErrorResponses, HttpError, headers_of, status_of
from tests.support.gateway.http import ErrorsOnly


class Other:
    """A second API family, with an error shape of its own."""

    def __init__(self) -> None:
        self.routes = (Route("/other", self.serve),)

    async def serve(self, request: Request) -> Response:
        """Serve its route."""
        return Response()

    def error_body(self, error: GatewayError) -> dict[str, Any]:
        """Return its shape."""
        return {"other": error.message}


def test_every_kind_has_a_status() -> None:
    assert set(STATUS) == set(ErrorKind)


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (GatewayError(ErrorKind.INVALID_REQUEST, "x"), 400, {}),
        (GatewayError(ErrorKind.NOT_FOUND, "x"), 404, {}),
        (GatewayError(ErrorKind.TOO_LARGE, "x", retryable=False), 400, {"x-should-retry": "false"}),
        (GatewayError(ErrorKind.UNAUTHENTICATED, "x"), 401, {"www-authenticate": "Bearer"}),
        (GatewayError(ErrorKind.FORBIDDEN, "x", retryable=False), 403, {"x-should-retry": "false"}),
        (
            GatewayError(ErrorKind.RATE_LIMITED, "x", retryable=True, retry_after_s=7),
            429,
            {"retry-after": "7", "retry-after-ms": "7000"},
        ),
        (
            GatewayError(ErrorKind.UNAVAILABLE, "x", retryable=True),
            503,
            {"retry-after": "2", "retry-after-ms": "2000"},
        ),
        (GatewayError(ErrorKind.INTERNAL, "x"), 500, {}),
        (HttpError(405, "x", headers={"allow": "GET"}), 405, {"allow": "GET"}),
    ],
)
def test_error_has_its_kinds_status_and_headers(error: GatewayError, status: int, headers: dict[str, str]) -> None:
    assert (status_of(error), headers_of(error)) == (status, headers)


@pytest.mark.parametrize(("path", "key"), [("/other", "other"), ("/nowhere", "error"), ("/other/more", "error")])
def test_error_has_the_called_familys_shape(path: str, key: str) -> None:
    errors = ErrorResponses([ErrorsOnly(), Other()])
    scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": []}
    response = errors.response(scope, GatewayError(ErrorKind.NOT_FOUND, "a sentence"))
    assert (response.status_code, list(json.loads(bytes(response.body)))) == (404, [key])
