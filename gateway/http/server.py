"""The HTTP server around the gateway's application, with its limits. Its caller opens the sockets and stops it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from gateway.http.connection import ConnectionLimits, HttpConnection, IdleConnections
from gateway.http.errors import HttpError
from gateway.http.origin_check import MAX_HEADER_BYTES


class Server(uvicorn.Server):
    """A server that leaves signals to the actor."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture no signals."""
        yield


def make_server(app: ASGIApp, limits: ConnectionLimits, error_body: Callable[[HttpError], bytes]) -> Server:
    """Return a server that is ready to serve; `error_body` writes errors that precede the application."""
    protocol = partial(HttpConnection, limits=limits, idle=IdleConnections(), error_body=error_body)
    settings = uvicorn.Config(
        app,
        http=cast(type[asyncio.Protocol], protocol),
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=limits.idle_s,
        proxy_headers=False,  # else any process of this machine could claim any address
        log_config=None,
        log_level="error",  # clients cause its warnings with anything that is not HTTP
        access_log=False,
        lifespan="off",
        ws="none",
        loop="asyncio",
        timeout_graceful_shutdown=1,
        server_header=False,
    )
    return Server(settings)
