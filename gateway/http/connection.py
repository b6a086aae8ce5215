"""The HTTP connections of a gateway: how many, and how long each may keep us waiting. Knows no request's meaning.

uvicorn waits for a request's head for ever, its idle timer starts anew with every byte, and a client that reads
nothing keeps its connection. So a client that does next to nothing could hold us; here each state has a deadline.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from gateway.core.errors import ApiError
from gateway.openai.chunks import encode

MOST_CONNECTIONS = 1024
SPARE_FILES = 256  # for everything that is not a client's connection


@dataclass(frozen=True)
class ConnectionLimits:
    """Seconds: `head_s` for a whole request head, from connecting or from its first byte; `idle_s` between requests;
    `drain_s` for what a client still sends once it has its answer; `read_s` for a client to take what we send."""

    most: int = MOST_CONNECTIONS
    head_s: float = 10.0
    idle_s: int = 30
    drain_s: float = 10.0
    read_s: float = 60.0


def most_connections(most: int = MOST_CONNECTIONS) -> int:
    """As many, or what the limit on open files leaves."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return most if files == resource.RLIM_INFINITY else max(64, min(most, files - SPARE_FILES))


class Waiting:
    """The connections without a request, those that have waited longest first."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._connections: OrderedDict[Connection, None] = OrderedDict()

    def add(self, connection: Connection) -> None:
        """It waits from now on, or as it did."""
        self._connections.setdefault(connection)

    def discard(self, connection: Connection) -> None:
        """It has a request, or is gone."""
        self._connections.pop(connection, None)

    def make_room(self) -> None:
        """End the connection that has waited longest."""
        connection, _ = self._connections.popitem(last=False)
        connection.transport.abort()


class Connection(H11Protocol):
    """One client's connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        waiting: Waiting,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._waiting = waiting
        self._limits = waiting.limits
        self._receipt: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client connected."""
        super().connection_made(transport)
        self._waiting.add(self)
        if len(self.connections) > self._limits.most:
            self._waiting.make_room()
        self._expect(self._limits.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._stop(self._receipt)
        self._stop(self._reading)
        self._waiting.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE:
            self._waiting.add(self)
            if self._receipt is None:
                self._expect(self._limits.head_s)
        elif self.cycle is None or not self.cycle.response_complete:
            self._received()

    def on_response_complete(self) -> None:
        """An answer is out. What is left of its request's body may come for a while; nobody reads it."""
        if self.conn.their_state is h11.SEND_BODY:
            self._expect(self._limits.drain_s)
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_later()
        elif self.conn.their_state is h11.IDLE:
            self._waiting.add(self)

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP, or too much of it; uvicorn handles h11's exception while it calls this."""
        error = sys.exception()
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            self._refuse(ApiError(431, "the headers are too large; send less"))
        else:
            self._refuse(ApiError(400, "this is no HTTP/1.1 request that can be understood"))

    def pause_writing(self) -> None:
        """The client takes less than we have for it."""
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        """The client takes it again."""
        if not self.transport.is_closing():
            self._stop(self._reading)
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for a while."""
        super().timeout_keep_alive_handler()
        self._abort_later()

    def _expect(self, seconds: float) -> None:
        self._stop(self._receipt)
        self._receipt = self.loop.call_later(seconds, self._too_slow)

    def _received(self) -> None:
        self._stop(self._receipt)
        self._receipt = None
        self._waiting.discard(self)

    def _too_slow(self) -> None:
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(ApiError(408, "the request did not come in time; send it faster"))
        else:
            self.transport.close()
            self._abort_later()

    def _refuse(self, error: ApiError) -> None:
        """Answer in place of the application, if no answer has begun, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            body = encode(error.body())
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
        """What is left must be taken by then; a transport that closes would wait for ever."""
        self._stop(self._reading)
        self._reading = self.loop.call_later(self._limits.read_s, self.transport.abort)

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
