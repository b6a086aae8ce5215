"""A table of ZeroMQ sockets and the functions that read them. It knows nothing of what they carry."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import zmq

Handler = Callable[[], None]


class Reactor:
    """Finds the handlers of the sockets that can be read. All of it runs on one thread."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()
        self._handlers: dict[zmq.Socket[bytes], Handler] = {}

    def register(self, socket: zmq.Socket[bytes], handler: Handler) -> None:
        """Call `handler` from now on when the socket can be read. It reads one message."""
        self._handlers[socket] = handler
        self._poller.register(socket, zmq.POLLIN)

    def unregister(self, socket: zmq.Socket[bytes]) -> None:
        """Forget a socket, before it is closed. Raises KeyError if it is not registered."""
        del self._handlers[socket]
        self._poller.unregister(socket)

    def poll(self, timeout_ms: int) -> Iterator[Handler]:
        """Wait until a socket can be read, and yield the handlers of all that can."""
        for socket, _ in self._poller.poll(timeout_ms):
            # A handler may unregister sockets that were found ready in the same round.
            if handler := self._handlers.get(socket):
                yield handler
