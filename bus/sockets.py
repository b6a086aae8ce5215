"""The one place that makes ZeroMQ sockets, so that limits (and, later, keys) cannot be forgotten.

Knows options and end points, nothing of messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import zmq
import zmq.asyncio

CONTROL_BYTES = 2 << 20  # one frame of the control bus: a body is at most 1 MiB
DATA_BYTES = 1 << 20  # one frame of the data plane: a fragment is at most 256 KiB
CONTROL_MARK = 1000
DATA_MARK = 256

_COMMON = {
    zmq.LINGER: 0,
    zmq.HEARTBEAT_IVL: 500,
    zmq.HEARTBEAT_TIMEOUT: 1500,
    zmq.HEARTBEAT_TTL: 1500,
    zmq.HANDSHAKE_IVL: 3000,
    zmq.CONNECT_TIMEOUT: 3000,
    zmq.RECONNECT_IVL: 50,
    zmq.RECONNECT_IVL_MAX: 1000,
    zmq.BACKLOG: 1024,
}


def open_socket(
    context: zmq.Context[zmq.Socket[bytes]],
    kind: int,
    *,
    high_water_mark: int = CONTROL_MARK,
    largest_frame: int = CONTROL_BYTES,
) -> zmq.Socket[bytes]:
    """A blocking socket with our limits. A ROUTER reports who cannot be reached; a DEALER queues only to the living."""
    socket = context.socket(kind)
    _limit(socket, kind, high_water_mark, largest_frame)
    return socket


def open_async_socket(context: zmq.asyncio.Context, kind: int) -> zmq.asyncio.Socket:
    """The same for an asyncio loop, on the control bus."""
    socket = context.socket(kind)
    _limit(socket, kind, CONTROL_MARK, CONTROL_BYTES)
    return socket


def _limit(socket: zmq.Socket[bytes] | zmq.asyncio.Socket, kind: int, mark: int, largest: int) -> None:
    for option, value in _COMMON.items():
        socket.setsockopt(option, value)
    socket.setsockopt(zmq.SNDHWM, mark)
    socket.setsockopt(zmq.RCVHWM, mark)
    socket.setsockopt(zmq.MAXMSGSIZE, largest)
    if kind == zmq.ROUTER:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    if kind in (zmq.DEALER, zmq.ROUTER):
        socket.setsockopt(zmq.IMMEDIATE, 1)


def bind_tcp(socket: zmq.Socket[bytes] | zmq.asyncio.Socket, host: str, port: int) -> str:
    """Bind to `host:port` (0: any free port) and return the end point. Raises OSError with a sentence."""
    place = f"[{host}]" if ":" in host else host
    socket.setsockopt(zmq.IPV6, int(":" in host))
    try:
        socket.bind(f"tcp://{place}:{port or '*'}")
    except zmq.ZMQError as error:
        raise OSError(
            f"cannot listen on {host}:{port}: {zmq.strerror(error.errno or 0)}; choose another port or host"
        ) from None
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


def bind_first(socket: zmq.Socket[bytes] | zmq.asyncio.Socket, host: str, ports: Sequence[int]) -> str:
    """Bind to the first of `ports` that can be had. Raises OSError with the last one's sentence."""
    for port in ports[:-1]:
        with suppress(OSError):
            return bind_tcp(socket, host, port)
    return bind_tcp(socket, host, ports[-1])


def connect(socket: zmq.Socket[bytes] | zmq.asyncio.Socket, endpoint: str) -> None:
    """Begin to connect. Raises ValueError for an end point that ZeroMQ cannot parse."""
    socket.setsockopt(zmq.IPV6, int("[" in endpoint))
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise ValueError(f"{endpoint!r} is no end point: {error}; write tcp://host:port") from None
