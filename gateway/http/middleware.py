"""What every request passes before the routes, as plain ASGI: its id, the origin check, the API key check."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.core.errors import ErrorKind, GatewayCode, GatewayError
from gateway.http.api_keys import ApiKeys
from gateway.http.auth_throttle import AuthThrottle
from gateway.http.errors import ErrorResponses
from gateway.http.origin_check import Headers, OriginPolicy, refusal

logger = logging.getLogger(__name__)

OPEN_PATH = "/health"  # needs no key; without one it only reports that the gateway is alive


class RequestId:
    """Gives every response an `x-request-id`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        request_id = f"req_{secrets.token_hex(16)}".encode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        await self._app(scope, receive, send_with_id)


class OriginCheck:
    """Refuses requests that a foreign web page may have made its reader's browser send."""

    def __init__(self, app: ASGIApp, policy: OriginPolicy, errors: ErrorResponses) -> None:
        self._app = app
        self._policy = policy
        self._errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        target = scope["raw_path"] + b"?" + scope["query_string"]
        error = refusal(scope["method"], target, scope["headers"], self._policy)
        app = self._app if error is None else self._errors.response(scope, error)
        await app(scope, receive, send)


class KeyCheck:
    """Requires an API key if there are any. Routes find in `state.authenticated` whether the client may see more.

    A right key always passes, whatever else its address sends: clients behind a proxy have one address. Only wrong
    keys are counted and made to wait.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys, throttle: AuthThrottle, errors: ErrorResponses) -> None:
        self._app = app
        self._keys = keys
        self._throttle = throttle
        self._errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        app = self._app
        try:
            scope.setdefault("state", {})["authenticated"] = self._authenticate(scope)
        except GatewayError as error:
            app = self._errors.response(scope, error)
        await app(scope, receive, send)

    def _authenticate(self, scope: Scope) -> bool:
        """Return whether the client has shown a key, or needs none. Raises GatewayError if the request is refused."""
        if not self._keys.required:
            return True
        keys = set(presented_keys(scope["headers"]))
        if not keys:
            if scope["path"] == OPEN_PATH:
                return False
            raise _invalid_key("this gateway requires an API key; send it as `Authorization: Bearer KEY`")
        if len(keys) == 1 and self._keys.accepts(*keys):
            return True
        address, now = scope["client"][0] if scope.get("client") else "", time.monotonic()
        self._check_throttle(address, now)
        self._throttle.record_failure(address, now)
        if self._throttle.wait_s(address, now):
            logger.warning("too many wrong API keys from %s; it has to wait", address)
        raise _invalid_key("this gateway does not accept that API key; ask its owner for one")

    def _check_throttle(self, address: str, now: float) -> None:
        if wait_s := self._throttle.wait_s(address, now):
            raise GatewayError(
                ErrorKind.RATE_LIMITED,
                f"too many wrong API keys came from your address; try again in {wait_s} s",
                code=GatewayCode.TOO_MANY_ATTEMPTS,
                retryable=True,
                retry_after_s=wait_s,
            )


def presented_keys(headers: Headers) -> Iterator[str]:
    """Yield every key that a request brings, in either of the headers that clients use."""
    for name, value in headers:
        text = value.decode("latin-1").strip()
        if name == b"x-api-key":
            yield text
        elif name == b"authorization" and text[:7].lower() == "bearer ":
            yield text[7:].strip()


def _invalid_key(message: str) -> GatewayError:
    return GatewayError(ErrorKind.UNAUTHENTICATED, message, code=GatewayCode.INVALID_API_KEY)
