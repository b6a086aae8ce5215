"""The HTTP server around the gateway's application, with its limits. Signals and sockets are its caller's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from gateway.http.connection import Connection, ConnectionLimits, Waiting
from gateway.http.origin_check import MAX_HEADER_BYTES


class Server(uvicorn.Server):
    """Signals are the actor's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def make_server(app: ASGIApp, limits: ConnectionLimits) -> Server:
    """A server that is ready to serve."""
    settings = uvicorn.Config(
        app,
        http=cast(type[asyncio.Protocol], partial(Connection, waiting=Waiting(limits))),
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=limits.idle_s,
        proxy_headers=False,  # else any process of this machine could name whatever address it likes
        log_config=None,
        log_level="error",  # its warnings are written by whoever sends nonsense
        access_log=False,
        lifespan="off",
        ws="none",
        loop="asyncio",
        timeout_graceful_shutdown=1,
        server_header=False,
    )
    return Server(settings)
