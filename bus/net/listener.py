"""A tcp port of the hub: a CURVE ROUTER that receives, and the monitor of its connections.

When the process has no file descriptor left, the port is closed for a second: ZeroMQ's own thread would spin on the
connection that it cannot accept. Connections with keys that are not accepted are gone within three.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import zmq
from zmq.utils.monitor import recv_monitor_message

from bus.hub_context import HubContext
from bus.net.endpoints import address_of, port_of
from bus.net.sockets import CONTROL_BYTES, CurveServer, bind_first, bind_tcp, open_socket
from bus.wire import WireError

logger = logging.getLogger(__name__)

PAUSE_S = 1.0
RETRY_S = 0.05
_WRONG_KEY = zmq.Event.HANDSHAKE_FAILED_PROTOCOL
_WATCHED = zmq.Event.ACCEPT_FAILED | _WRONG_KEY | zmq.Event.HANDSHAKE_FAILED_AUTH

Receive = Callable[[str, bytes, list[bytes]], None]
"""(user id that ZAP gave the connection, its routing id, frames)"""


def _ignore() -> None:
    pass


class Listener:
    """Used on the hub's thread only."""

    def __init__(
        self,
        context: HubContext,
        ports: Sequence[int],
        curve: CurveServer,
        receive: Receive,
        wrong_key: Callable[[], None] = _ignore,
        *,
        largest_frame: int = CONTROL_BYTES,
    ) -> None:
        """Listen on the first of `ports` that is free. Raises OSError with a sentence.

        `receive` is called for each message, `wrong_key` when a client used another key than the port's.
        """
        self._context, self._curve, self._receive, self._wrong_key = context, curve, receive, wrong_key
        self._socket = open_socket(context.zmq_context, zmq.ROUTER, largest_frame=largest_frame)
        self._monitor = self._socket.get_monitor_socket(_WATCHED)
        self._rebind_at: float | None = None  # None while it listens
        self.endpoint = bind_first(self._socket, context.config.host, ports, curve)
        context.reactor.register(self._socket, self._read)
        context.reactor.register(self._monitor, self._read_event)

    def reply(self, routing_id: bytes, frames: Sequence[bytes]) -> None:
        """Send to a connection, unless it is gone."""
        try:
            self._socket.send_multipart([routing_id, *frames], zmq.DONTWAIT)
        except zmq.ZMQError:
            self._context.counters["requester gone"] += 1

    def use_key(self, curve: CurveServer) -> None:
        """Listen with another key on the same port. Established connections stay."""
        self._curve = curve
        self._unbind(time.monotonic())
        self.maintain(time.monotonic())

    def maintain(self, now: float) -> None:
        """Listen again if it is time to."""
        if self._rebind_at is None or now < self._rebind_at:
            return
        try:
            self.endpoint = bind_tcp(self._socket, self._context.config.host, port_of(self.endpoint), self._curve)
            self._rebind_at = None
        except OSError as error:  # the old listener is not quite gone, or there is still no descriptor
            self._rebind_at = now + RETRY_S
            self._context.counters[f"not listening: {error.errno or 'busy'}"] += 1

    def close(self) -> None:
        """Stop listening and drop all connections."""
        for socket in (self._socket, self._monitor):
            self._context.reactor.unregister(socket)
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)

    def _read(self) -> None:
        identity, *parts = self._socket.recv_multipart(copy=False)
        try:
            user = str(identity.get("User-Id"))
        except zmq.ZMQError:  # ZAP accepts nothing without one
            raise WireError("foreign") from None
        self._receive(user, identity.bytes, [part.bytes for part in parts])

    def _read_event(self) -> None:
        event = recv_monitor_message(self._monitor)["event"]
        if event == zmq.Event.ACCEPT_FAILED:
            self._pause()
            return
        self._context.counters[f"refused at {self._curve.domain}"] += 1
        if event == _WRONG_KEY:
            self._wrong_key()

    def _pause(self) -> None:
        self._context.counters["out of descriptors"] += 1
        if self._rebind_at is None:
            logger.warning(
                "too many open files: the %s port is closed for a second; raise the limit (ulimit -n)",
                self._curve.domain,
            )
            self._unbind(time.monotonic() + PAUSE_S)

    def _unbind(self, until: float) -> None:
        if self._rebind_at is None:
            self._socket.unbind(address_of(self.endpoint))
        self._rebind_at = until
