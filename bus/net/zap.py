"""The answer to "may this key in?", asked by ZeroMQ at every CURVE handshake of a context (ZAP, ZeroMQ RFC 27).

Who may is the owner's callback to say; it is asked on this thread, so it must be quick. One handler a context. A
callback that raises refuses that one key and is counted; without a handler every key is refused.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable

import zmq

from bus.net.sockets import open_socket

logger = logging.getLogger(__name__)

ENDPOINT = "inproc://zeromq.zap.01"  # the name that ZAP prescribes
_STOP = b"stop"

Allow = Callable[[str, bytes], str]
"""(domain, public key of 32 bytes) -> the user id that messages of this connection carry; empty: not let in."""


class ZapHandler:
    """Serves from its making until `close`. `counters` tells what was refused, by domain."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], allow: Allow) -> None:
        self.counters: Counter[str] = Counter()
        self._context = context
        self._allow = allow
        self._socket = open_socket(context, zmq.ROUTER)
        self._socket.bind(ENDPOINT)  # here, so that no handshake can come before it
        self._thread = threading.Thread(target=self._serve, name="zap", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. Handshakes that come later are refused."""
        if self._thread.is_alive():
            stop = open_socket(self._context, zmq.DEALER)
            stop.connect(ENDPOINT)
            stop.send(_STOP)
            self._thread.join(2.0)
            stop.close(0)

    def _serve(self) -> None:
        try:
            while len(frames := self._socket.recv_multipart()) > 2:
                self._answer(frames)
        except zmq.ContextTerminated:
            pass
        finally:
            self._socket.close(0)

    def _answer(self, frames: list[bytes]) -> None:
        """Frames: return route, empty, version, request id, domain, address, routing id, mechanism, credentials."""
        route, _, version, request, domain, address, _, mechanism, *credentials = frames
        user = self._judge(domain.decode(errors="replace"), mechanism, credentials, address)
        status = (b"200", b"") if user else (b"400", b"no such key here")
        try:
            self._socket.send_multipart([route, b"", version, request, *status, user.encode(), b""], zmq.DONTWAIT)
        except zmq.ContextTerminated:
            raise
        except zmq.ZMQError:  # whoever knocked has left already
            self.counters["left before the answer"] += 1

    def _judge(self, domain: str, mechanism: bytes, credentials: list[bytes], address: bytes) -> str:
        """The user id, or nothing. Whatever goes wrong refuses this one handshake and no other."""
        try:
            user = self._allow(domain, credentials[0]) if mechanism == b"CURVE" else ""
        except Exception:  # a handler that ended here would shut everybody out
            logger.exception("judging a key for %s", domain)
            user = ""
        if not user:
            self.counters[f"refused: key for {domain}"] += 1
        return user
