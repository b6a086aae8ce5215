"""HTTP in and out, as plain ASGI: bounded bodies, JSON, server-sent events, and noticing that a client left."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.core.errors import ApiError, too_slow, unavailable
from gateway.openai.chunks import encode

SEND_WITHIN_S = 60.0  # a client that reads nothing for so long has left


class Json(Response):
    """A JSON body in ASCII."""

    media_type = "application/json"

    def render(self, content: Mapping[str, Any]) -> bytes:
        """The body's bytes."""
        return encode(content)


def error_response(error: ApiError) -> Json:
    """An error in OpenAI's shape."""
    return Json(error.body(), error.status, error.headers)


class ClientLeft(Exception):
    """Nobody reads the response any more."""


class EventStream:
    """The server's side of one stream of server-sent events. It begins with the first bytes that are sent."""

    def __init__(self, send: Send) -> None:
        self.begun = False
        self._send = send

    async def send(self, data: bytes, *, more: bool = True) -> None:
        """Send events; without `more` the stream ends. Raises ClientLeft where the client stopped reading."""
        try:
            async with asyncio.timeout(SEND_WITHIN_S):
                if not self.begun:
                    self.begun = True
                    await self._send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
                await self._send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError:
            raise ClientLeft from None


_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


@dataclass(frozen=True)
class BodyLimits:
    """How large a request's body may be and how large those that come in at one time `together`, in bytes.

    It may take `within_s` seconds, and as long again as it takes to send what came at `bytes_per_s`.
    """

    most: int
    together: int = 256 << 20
    within_s: float = 10.0
    bytes_per_s: int = 64 << 10


class Bodies:
    """The bodies that come in, bounded each and together."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._held = 0

    async def read(self, request: Request) -> bytes:
        """One request's body. ApiError 413 where it is too large, 408 too slow, 503 where too much comes in."""
        if int(request.headers.get("content-length", 0)) > self._limits.most:
            raise self._too_large()
        body = bytearray()
        try:
            await self._read_into(body, request)
        except TimeoutError:
            raise too_slow() from None
        finally:
            self._held -= len(body)
        return bytes(body)

    async def _read_into(self, body: bytearray, request: Request) -> None:
        limits = self._limits
        deadline = asyncio.get_running_loop().time() + limits.within_s
        async with asyncio.timeout_at(deadline) as timeout:
            async for part in request.stream():
                body += part
                self._held += len(part)
                if len(body) > limits.most:
                    raise self._too_large()
                if self._held > limits.together:
                    raise unavailable("busy", "too many large requests come in at one time; try again soon")
                timeout.reschedule(deadline + len(body) / limits.bytes_per_s)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._limits.most >> 20} MiB; send less")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end, or cancel it when the client leaves."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_client_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            with suppress(ClientLeft):
                working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class WithRequestId:
    """Gives every response an `x-request-id`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        request_id = f"req_{secrets.token_hex(16)}".encode()

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        await self._app(scope, receive, send_named)
