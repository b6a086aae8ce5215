"""A gateway's server on a thread of its own, with the test's application and limits, and raw clients for it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from gateway.core.errors import GatewayError
from gateway.http.bodies import BodyLimits, RequestBodies
from gateway.http.connection import ConnectionLimits
from gateway.http.errors import ErrorResponses
from gateway.http.json_response import JsonResponse
from gateway.http.server import Server, make_server
from gateway.openai.errors import error_body
from tests.support.gateway.text_stage import WITHIN_S

SHORT = ConnectionLimits(most=64, head_s=0.5, idle_s=1, drain_s=0.5, read_s=0.5)
BODY = BodyLimits(1000, together=2000, free=10, timeout_s=0.5, bytes_per_s=10)
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
MANY = 4096  # steps of a hundredth of a second; a server that has not closed the connection by then fails


class ErrorsOnly:
    """An API family without routes, for applications of tests: errors in OpenAI's shape."""

    routes = ()

    def error_body(self, error: GatewayError) -> dict[str, Any]:
        """Return an error in OpenAI's shape."""
        return error_body(error)


ERRORS = ErrorResponses([ErrorsOnly()])


@dataclass
class Served:
    """A server on a thread of its own."""

    port: int
    server: Server

    @contextmanager
    def connected(self, data: bytes = b"") -> Iterator[socket.socket]:
        """Connect a client that sends this."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=WITHIN_S) as client:
            client.sendall(data)
            yield client


@contextmanager
def serving(app: ASGIApp, limits: ConnectionLimits) -> Iterator[Served]:
    """Run a server with these limits during the block."""
    server = make_server(app, limits, ERRORS.body)
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    try:
        yield Served(listener.getsockname()[1], server)
    finally:
        server.should_exit = True
        thread.join(WITHIN_S)
        assert not thread.is_alive()


def trickled(client: socket.socket, data: bytes = b"x") -> bytes:
    """Return all that comes back while bytes are sent one by one, until the other side closes."""
    received = b""
    client.settimeout(0.01)
    for _ in range(MANY):
        try:
            part = client.recv(1 << 16)
            if not part:
                return received
            received += part
        except TimeoutError:
            with suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(data)
        except ConnectionResetError:
            return received
    raise AssertionError("the server never closed the connection")


def rest(client: socket.socket) -> bytes:
    """Return what can still be read until the other side closes."""
    client.settimeout(WITHIN_S)
    received = b""
    with suppress(ConnectionResetError):
        while part := client.recv(1 << 16):
            received += part
    return received


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def error(answer: bytes) -> dict[str, str]:
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return dict(body["error"])


def one_answer(client: socket.socket, received: bytes = b"") -> bytes:
    """Return one response on a connection that stays open; `received` is the part that was read already."""
    while b"}" not in received:
        part = client.recv(1 << 16)
        assert part
        received += part
    return received


def application(held: threading.Event) -> Starlette:
    """Return an application that reads bodies, waits until `held` is set, and sends without end."""
    bodies = RequestBodies(BODY)

    async def root(request: Request) -> Response:
        return JsonResponse({"ok": True})

    async def read(request: Request) -> Response:
        async with bodies.read(request) as body:
            return JsonResponse({"bytes": len(body)})

    async def hold(request: Request) -> Response:
        await asyncio.to_thread(held.wait, WITHIN_S)
        return JsonResponse({"held": True})

    async def flood(request: Request) -> Response:
        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * (1 << 16)
                await asyncio.sleep(0)  # a send to a client that is gone does not wait for anything

        return StreamingResponse(endless())

    routes = [Route("/", root), Route("/read", read, methods=["POST"]), Route("/hold", hold), Route("/flood", flood)]
    return Starlette(routes=routes, exception_handlers=ERRORS.handlers())
