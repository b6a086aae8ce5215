"""Who gets past the door: browser checks and API keys, as plain ASGI in front of the routes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.core.errors import ApiError, no_key, too_many_attempts
from gateway.http.api_keys import ApiKeys
from gateway.http.auth_throttle import AuthThrottle
from gateway.http.origin_check import Headers, Site, refusal
from gateway.http.responses import error_response

logger = logging.getLogger(__name__)

OPEN_PATH = "/health"  # whoever asks learns that we live, and nothing else


class OriginCheck:
    """Refuses what a web page may have made somebody's browser send."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self._app = app
        self._site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        target = scope["raw_path"] + b"?" + scope["query_string"]
        found = refusal(scope["method"], target, scope["headers"], self._site)
        if found is None:
            await self._app(scope, receive, send)
        else:
            await error_response(ApiError(*found))(scope, receive, send)


class KeyCheck:
    """Asks for an API key where there are any; the routes see in `state.known` whether one came."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, attempts: AuthThrottle) -> None:
        self._app = app
        self._keys = keys
        self._attempts = attempts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        try:
            scope.setdefault("state", {})["known"] = self._known(scope)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        """Whether the client has a right to be here. Raises ApiError where it may not even ask."""
        if not self._keys.required:
            return True
        presented = set(presented_keys(scope["headers"]))
        if presented:
            return self._checked(presented, scope["client"][0] if scope.get("client") else "")
        if scope["path"] == OPEN_PATH:
            return False
        raise no_key("this gateway wants an API key; send it as `Authorization: Bearer KEY`")

    def _checked(self, presented: set[str], address: str) -> bool:
        now = time.monotonic()
        if wait_s := self._attempts.wait_s(address, now):
            raise too_many_attempts(wait_s)
        if len(presented) == 1 and self._keys.accepts(*presented):
            return True
        self._attempts.failed(address, now)
        if self._attempts.wait_s(address, now):
            logger.warning("too many wrong API keys from %s; it has to wait", address)
        raise no_key("this gateway does not know that API key; ask whoever runs it for one")


def presented_keys(headers: Headers) -> Iterator[str]:
    """Every key that a request brings, in either of the headers that clients use. Pure."""
    for name, value in headers:
        text = value.decode("latin-1").strip()
        if name == b"x-api-key":
            yield text
        elif name == b"authorization" and text[:7].lower() == "bearer ":
            yield text[7:].strip()
