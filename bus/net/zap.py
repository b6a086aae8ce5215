"""ZAP (ZeroMQ RFC 27): decides at each CURVE handshake of a context whether a client's key is accepted.

The decision is a callback's, which runs on this thread and must be quick. If it raises, that one key is refused. A
context has one handler; without it every key is refused.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import zmq

from bus.net.sockets import open_socket

logger = logging.getLogger(__name__)

ENDPOINT = "inproc://zeromq.zap.01"  # the name that ZAP prescribes
_STOP = b"stop"

Authenticate = Callable[[str, bytes], str]
"""(domain, public key of 32 bytes) -> the user id of this connection's messages; empty to refuse the key."""


class ZapHandler:
    """Decides on a thread of its own, from its construction until `close`."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], authenticate: Authenticate) -> None:
        self._context = context
        self._authenticate = authenticate
        self._socket = open_socket(context, zmq.ROUTER)
        self._socket.bind(ENDPOINT)  # not on the thread, so that no handshake can come before it
        self._thread = threading.Thread(target=self._serve, name="zap", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. Later handshakes are refused. Closing it again does nothing."""
        if self._thread.is_alive():
            stop = open_socket(self._context, zmq.DEALER)
            stop.connect(ENDPOINT)
            stop.send(_STOP)
            self._thread.join(2.0)
            stop.close(0)

    def _serve(self) -> None:
        try:
            while len(frames := self._socket.recv_multipart()) > 2:
                self._reply(frames)
        except zmq.ContextTerminated:
            pass
        finally:
            self._socket.close(0)

    def _reply(self, frames: list[bytes]) -> None:
        route, _, version, request, domain, _address, _routing_id, mechanism, *credentials = frames
        user = self._user(domain.decode(errors="replace"), mechanism, credentials)
        status = (b"200", b"") if user else (b"400", b"this key is not accepted")
        try:
            self._socket.send_multipart([route, b"", version, request, *status, user.encode(), b""], zmq.DONTWAIT)
        except zmq.ContextTerminated:
            raise
        except zmq.ZMQError:
            logger.debug("a client left before its key was decided on")

    def _user(self, domain: str, mechanism: bytes, credentials: list[bytes]) -> str:
        try:
            return self._authenticate(domain, credentials[0]) if mechanism == b"CURVE" else ""
        except Exception:  # if this thread ended, every later key would be refused
            logger.exception("cannot decide on a key for %s", domain)
            return ""
