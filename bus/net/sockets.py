"""The only place that makes ZeroMQ sockets, so that no limit and no key can be forgotten.

All tcp listeners and connections use CURVE: no function here makes one without keys. ipc endpoints lie in folders of
mode 0700 and need none. This module knows options and endpoints, but no messages; `bus.net.zap` decides which keys are
accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import zmq
import zmq.asyncio

from bus.net.endpoints import address_of, key_of, with_key
from bus.net.keys import KeyPair

CONTROL_BYTES = 512 << 10  # one frame of the control bus; a half-open connection can cost as much
DATA_BYTES = 1 << 20  # one frame of the data plane: a fragment of 256 KiB, or a whole prompt's ids
CONTROL_MARK = 1000
DATA_MARK = 256

_COMMON: Mapping[zmq.SocketOption, int] = {
    zmq.LINGER: 0,
    zmq.HANDSHAKE_IVL: 3000,
    zmq.CONNECT_TIMEOUT: 3000,
    zmq.RECONNECT_IVL: 50,
    zmq.RECONNECT_IVL_MAX: 1000,
    zmq.BACKLOG: 1024,
}

# Only the side that connects and sends has heartbeats; the listener goes by the time to live in them. A socket that
# receives much must not send any: libzmq 4.3.5 aborts the process if one is due on a connection that broke while its
# incoming pipe was full.
_HEARTBEATS: Mapping[zmq.SocketOption, int] = {
    zmq.HEARTBEAT_IVL: 500,
    zmq.HEARTBEAT_TIMEOUT: 1500,
    zmq.HEARTBEAT_TTL: 1500,
}

Socket = zmq.Socket[bytes] | zmq.asyncio.Socket


@dataclass(frozen=True, slots=True)
class CurveServer:
    """The key pair of a tcp listener, and the domain for which its ZAP handler is asked.

    Without a `bus.net.zap.ZapHandler` on its context the port accepts no client. CURVE alone would accept all.
    """

    pair: KeyPair
    domain: str


def open_socket(
    context: zmq.Context[Any],
    kind: int,
    *,
    high_water_mark: int = CONTROL_MARK,
    largest_frame: int = CONTROL_BYTES,
) -> zmq.Socket[bytes]:
    """Make a blocking socket with our limits, also from an asyncio context.

    A ROUTER raises ZMQError (EHOSTUNREACH) for a routing id without a connection; a DEALER queues only for connections
    that are established.
    """
    socket: zmq.Socket[bytes] = context.socket(kind, socket_class=zmq.Socket)
    _limit(socket, kind, high_water_mark, largest_frame)
    return socket


def open_async_socket(context: zmq.asyncio.Context, kind: int) -> zmq.asyncio.Socket:
    """Make a socket for an asyncio loop, with the limits of the control bus."""
    socket = context.socket(kind)
    _limit(socket, kind, CONTROL_MARK, CONTROL_BYTES)
    return socket


def _limit(socket: Socket, kind: int, mark: int, largest: int) -> None:
    _set(socket, _COMMON)
    socket.setsockopt(zmq.SNDHWM, mark)
    socket.setsockopt(zmq.RCVHWM, mark)
    socket.setsockopt(zmq.MAXMSGSIZE, largest)
    if kind == zmq.ROUTER:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    if kind in (zmq.DEALER, zmq.ROUTER):
        socket.setsockopt(zmq.IMMEDIATE, 1)


def _set(socket: Socket, options: Mapping[zmq.SocketOption, int]) -> None:
    for option, value in options.items():
        socket.setsockopt(option, value)


def bind_ipc(socket: Socket, endpoint: str) -> None:
    """Listen at `ipc://…`. Must be called before `bind_tcp`. Raises OSError with a sentence."""
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        reason = zmq.strerror(error.errno or 0)
        raise OSError(f"cannot listen on {endpoint}: {reason}; check the temporary folder") from None


def bind_tcp(socket: Socket, host: str, port: int, curve: CurveServer) -> str:
    """Bind to `host:port` (0: any free port) and return the endpoint with the key. Raises OSError with a sentence."""
    # CURVE options hold for the binds that come after them, so ipc endpoints of the same socket are bound before.
    _use_keys(socket, curve.pair)
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.ZAP_DOMAIN, curve.domain.encode())
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without it every client is accepted if there is no handler
    socket.setsockopt(zmq.IPV6, int(":" in host))
    try:
        socket.bind(f"tcp://{f'[{host}]' if ':' in host else host}:{port or '*'}")
    except zmq.ZMQError as error:
        raise OSError(
            f"cannot listen on {host}:{port}: {zmq.strerror(error.errno or 0)}; choose another port or host"
        ) from None
    return with_key(socket.getsockopt_string(zmq.LAST_ENDPOINT), curve.pair.public)


def bind_first(socket: Socket, host: str, ports: Sequence[int], curve: CurveServer) -> str:
    """Bind to the first of `ports` that is free. Raises OSError with the last one's sentence."""
    for port in ports[:-1]:
        with suppress(OSError):
            return bind_tcp(socket, host, port, curve)
    return bind_tcp(socket, host, ports[-1], curve)


def connect_ipc(socket: Socket, endpoint: str, *, only_sends: bool = False) -> None:
    """Start to connect to `ipc://…`, a process of this user. A socket that only sends notices if that one freezes."""
    if only_sends:
        _set(socket, _HEARTBEATS)
    socket.connect(endpoint)


def connect(socket: Socket, endpoint: str, own: KeyPair) -> None:
    """Start to connect: over tcp as the owner of a pair to the owner of the endpoint's key, over ipc without keys.

    Raises ValueError for an endpoint that ZeroMQ cannot parse, or a tcp one without a key.
    """
    try:
        if not endpoint.startswith("ipc://"):
            _use_keys(socket, own)
            _set(socket, _HEARTBEATS)
            socket.setsockopt(zmq.CURVE_SERVERKEY, key_of(endpoint))
            socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        socket.connect(address_of(endpoint))
    except zmq.ZMQError as error:
        raise ValueError(f"{endpoint!r} is no endpoint: {error}; write tcp://host:port") from None


def _use_keys(socket: Socket, pair: KeyPair) -> None:
    socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
