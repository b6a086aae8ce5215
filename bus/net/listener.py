"""A tcp port of the hub that only hears: a guarded ROUTER and its monitor. What a message means is the hub's business.

Where the process runs out of file descriptors it stops listening for a second: ZeroMQ's own thread would spin on the
connection that it cannot accept, and connections that are no members' are gone within three.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence

import zmq
from zmq.utils.monitor import recv_monitor_message

from bus.net.endpoints import address_of
from bus.net.sockets import CONTROL_BYTES, CurveServer, bind_first, bind_tcp, open_socket
from bus.wire import WireError

logger = logging.getLogger(__name__)

LISTEN_AGAIN_S = 1.0
_BAD_KEY = zmq.Event.HANDSHAKE_FAILED_PROTOCOL
_WATCHED = zmq.Event.ACCEPT_FAILED | _BAD_KEY | zmq.Event.HANDSHAKE_FAILED_AUTH


class Listener:
    """Used on the hub's thread only. `socket` and `monitor` are for its poller."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        host: str,
        ports: Sequence[int],
        guard: CurveServer,
        counters: Counter[str],
        largest_frame: int = CONTROL_BYTES,
    ) -> None:
        """Listen on the first of `ports` that can be had. Raises OSError with a sentence."""
        self.socket = open_socket(context, zmq.ROUTER, largest_frame=largest_frame)
        self.monitor = self.socket.get_monitor_socket(_WATCHED)
        self._host, self._guard, self._counters = host, guard, counters
        self._again_at: float | None = None
        self.endpoint = bind_first(self.socket, host, ports, guard)

    def receive(self) -> tuple[str, bytes, list[bytes]]:
        """Who sent the next message, as ZAP named it, the routing id for an answer, and the frames."""
        source, *parts = self.socket.recv_multipart(copy=False)
        return _user_of(source), source.bytes, [part.bytes for part in parts]

    def answer(self, source: bytes, frames: Sequence[bytes]) -> None:
        """Answer, unless whoever asked is gone."""
        try:
            self.socket.send_multipart([source, *frames], zmq.DONTWAIT)
        except zmq.ZMQError:
            self._counters["asker gone"] += 1

    def from_monitor(self) -> bool:
        """Something failed at the port; true where it was a handshake with a wrong key."""
        event = recv_monitor_message(self.monitor)["event"]
        if event == zmq.Event.ACCEPT_FAILED:
            self._pause()
        else:
            self._counters[f"refused at {self._guard.domain}"] += 1
        return bool(event == _BAD_KEY)

    def listen_as(self, guard: CurveServer) -> None:
        """Go on with another key, on the same port. Connections that stand are kept."""
        self._guard = guard
        self._silence()
        self.tend(time.monotonic())

    def tend(self, now: float) -> None:
        """Listen again where that is due."""
        if self._again_at is None or now < self._again_at:
            return
        try:
            self.endpoint = bind_tcp(self.socket, self._host, self._number, self._guard)
            self._again_at = None
        except OSError as error:  # the old listener is not quite gone, or descriptors are still short
            self._again_at = now + LISTEN_AGAIN_S / 20
            self._counters[f"not listening: {error.errno or 'busy'}"] += 1

    def close(self) -> None:
        """Stop listening and drop every connection."""
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(0)

    def _pause(self) -> None:
        self._counters["out of descriptors"] += 1
        if self._again_at is None:
            logger.warning("too many open files: %s is closed for a second; raise the limit (ulimit -n)", self._name)
            self._silence()
            self._again_at = time.monotonic() + LISTEN_AGAIN_S

    def _silence(self) -> None:
        if self._again_at is None:
            self.socket.unbind(address_of(self.endpoint))
        self._again_at = 0.0

    @property
    def _name(self) -> str:
        return f"the {self._guard.domain} port"

    @property
    def _number(self) -> int:
        return int(address_of(self.endpoint).rpartition(":")[2])


def _user_of(part: zmq.Frame) -> str:
    """The user id that ZAP gave a connection. Raises WireError where it gave none: nothing of that is believed."""
    try:
        return str(part.get("User-Id"))
    except zmq.ZMQError:
        raise WireError("foreign") from None
