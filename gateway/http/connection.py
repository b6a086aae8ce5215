"""HTTP/1.1 connections with a deadline for each state, and a limit on how many there are.

uvicorn waits without limit for a request's head, restarts its idle timer with every byte, and keeps the connection of
a client that reads nothing. A client that does next to nothing could hold all connections; here it cannot.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from gateway.http.errors import HttpError

MAX_CONNECTIONS = 1024
SPARE_FILES = 256  # for everything that is not a client's connection


@dataclass(frozen=True)
class ConnectionLimits:
    """The most connections at a time, and deadlines in seconds.

    `head_s` is for a whole request head, from the connection's start or the head's first byte; `idle_s` for the time
    between requests; `drain_s` for what a client still sends after its response; `read_s` for a client to read what
    was sent to it.
    """

    most: int = MAX_CONNECTIONS
    head_s: float = 10.0
    idle_s: int = 30
    drain_s: float = 10.0
    read_s: float = 60.0


def max_connections() -> int:
    """Return MAX_CONNECTIONS, or what the limit on open files leaves, at least 64."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_CONNECTIONS if files == resource.RLIM_INFINITY else max(64, min(MAX_CONNECTIONS, files - SPARE_FILES))


class IdleConnections:
    """The connections without a request, those that have been idle the longest first."""

    def __init__(self) -> None:
        self._connections: OrderedDict[HttpConnection, None] = OrderedDict()

    def add(self, connection: HttpConnection) -> None:
        """Count a connection as idle; one that is already keeps its place."""
        self._connections.setdefault(connection)

    def discard(self, connection: HttpConnection) -> None:
        """Forget a connection, because it has a request or is closed."""
        self._connections.pop(connection, None)

    def abort_oldest(self) -> None:
        """End the connection that has been idle the longest."""
        connection, _ = self._connections.popitem(last=False)
        connection.transport.abort()


class HttpConnection(H11Protocol):
    """One client's connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits,
        idle: IdleConnections,
        error_body: Callable[[HttpError], bytes],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._idle = idle
        self._error_body = error_body
        self._receive_timer: asyncio.TimerHandle | None = None
        self._abort_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Start the deadline for the first request head."""
        super().connection_made(transport)
        self._idle.add(self)
        if len(self.connections) > self._limits.most:
            self._idle.abort_oldest()
        self._expect(self._limits.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._stop(self._receive_timer)
        self._stop(self._abort_timer)
        self._idle.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, and see whether they complete a request head."""
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE:
            self._idle.add(self)
            if self._receive_timer is None:
                self._expect(self._limits.head_s)
        elif self.cycle is None or not self.cycle.response_complete:
            self._received()

    def on_response_complete(self) -> None:
        """Start the deadline for what is left of the request's body, which is ignored."""
        if self.conn.their_state is h11.SEND_BODY:
            self._expect(self._limits.drain_s)
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_later()
        elif self.conn.their_state is h11.IDLE:
            self._idle.add(self)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or too much of it; uvicorn calls this while it handles h11's exception."""
        error = sys.exception()
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            self._refuse(HttpError(431, "the headers are too large; send less"))
        else:
            self._refuse(HttpError(400, "this is not a valid HTTP/1.1 request"))

    def pause_writing(self) -> None:
        """Start the deadline for a client that reads more slowly than the application writes."""
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        """Stop that deadline: the client reads again."""
        if not self.transport.is_closing():
            self._stop(self._abort_timer)
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        super().timeout_keep_alive_handler()
        self._abort_later()

    def _expect(self, seconds: float) -> None:
        self._stop(self._receive_timer)
        self._receive_timer = self.loop.call_later(seconds, self._too_slow)

    def _received(self) -> None:
        self._stop(self._receive_timer)
        self._receive_timer = None
        self._idle.discard(self)

    def _too_slow(self) -> None:
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(HttpError(408, "the request did not come in time; send it faster"))
        else:
            self.transport.close()
            self._abort_later()

    def _refuse(self, error: HttpError) -> None:
        """Respond in place of the application, if no response has begun, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            body = self._error_body(error)
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            response = h11.Response(status_code=error.status, headers=headers)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._abort_later()

    def _abort_later(self) -> None:
        """Abort if the client does not read the rest in time; a closing transport would wait for it without limit."""
        self._stop(self._abort_timer)
        self._abort_timer = self.loop.call_later(self._limits.read_s, self.transport.abort)

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
