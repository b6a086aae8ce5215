"""The one place that makes ZeroMQ sockets, so that limits and keys cannot be forgotten.

Whatever listens or connects over tcp does so with CURVE: there is no call without keys. ipc end points lie in folders
of mode 0700 and need none. Knows options and end points, nothing of messages; who is let in is `bus.net.zap`'s to
answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

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

# Who dials and only sends has them, and who listens goes by the time to live that each one names. Who hears much must
# send none: libzmq 4.3.5 ends the process where one is due on a connection that broke while its incoming pipe was full.
_HEARTBEATS: Mapping[zmq.SocketOption, int] = {
    zmq.HEARTBEAT_IVL: 500,
    zmq.HEARTBEAT_TIMEOUT: 1500,
    zmq.HEARTBEAT_TTL: 1500,
}

Socket = zmq.Socket[bytes] | zmq.asyncio.Socket


@dataclass(frozen=True, slots=True)
class CurveServer:
    """How a tcp port is kept: the key pair of whoever listens, and the domain that its ZAP handler is asked for.


    Without a `bus.net.zap.ZapHandler` on its context the port accepts nobody: CURVE alone would accept everybody.
    """

    pair: KeyPair
    domain: str


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
    """Listen at `ipc://…`. To be called before `bind_tcp`. Raises OSError with a sentence."""
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        reason = zmq.strerror(error.errno or 0)
        raise OSError(f"cannot listen on {endpoint}: {reason}; check the temporary folder") from None


def bind_tcp(socket: Socket, host: str, port: int, guard: CurveServer) -> str:
    """Bind to `host:port` (0: any free port) and return the end point, key included. Raises OSError with a sentence."""
    place = f"[{host}]" if ":" in host else host
    _guard(socket, guard)
    socket.setsockopt(zmq.IPV6, int(":" in host))
    try:
        socket.bind(f"tcp://{place}:{port or '*'}")
    except zmq.ZMQError as error:
        raise OSError(
            f"cannot listen on {host}:{port}: {zmq.strerror(error.errno or 0)}; choose another port or host"
        ) from None
    return with_key(socket.getsockopt_string(zmq.LAST_ENDPOINT), guard.pair.public)


def bind_first(socket: Socket, host: str, ports: Sequence[int], guard: CurveServer) -> str:
    """Bind to the first of `ports` that can be had. Raises OSError with the last one's sentence."""
    for port in ports[:-1]:
        with suppress(OSError):
            return bind_tcp(socket, host, port, guard)
    return bind_tcp(socket, host, ports[-1], guard)


def connect_ipc(socket: Socket, endpoint: str, *, only_sends: bool = False) -> None:
    """Begin to connect to `ipc://…`, a process of this user. A socket that only sends notices one that is frozen."""
    if only_sends:
        _set(socket, _HEARTBEATS)
    socket.connect(endpoint)


def connect(socket: Socket, endpoint: str, own: KeyPair) -> None:
    """Begin to connect: over tcp as the owner of a pair to the owner of the end point's key, over ipc without keys.

    Raises ValueError for an end point that ZeroMQ cannot parse, or a tcp one without a key.
    """
    try:
        if not endpoint.startswith("ipc://"):
            _identify(socket, endpoint, own)
        socket.connect(address_of(endpoint))
    except zmq.ZMQError as error:
        raise ValueError(f"{endpoint!r} is no end point: {error}; write tcp://host:port") from None


def _guard(socket: Socket, guard: CurveServer) -> None:
    """Options hold for the binds that come after them, so ipc ones come before."""
    _use(socket, guard.pair)
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.ZAP_DOMAIN, guard.domain.encode())
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without it a missing handler lets everybody in


def _identify(socket: Socket, endpoint: str, own: KeyPair) -> None:
    _use(socket, own)
    _set(socket, _HEARTBEATS)
    socket.setsockopt(zmq.CURVE_SERVERKEY, key_of(endpoint))
    socket.setsockopt(zmq.IPV6, int("[" in endpoint))


def _use(socket: Socket, pair: KeyPair) -> None:
    socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
