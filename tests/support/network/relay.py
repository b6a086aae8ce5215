"""A tcp relay in front of an endpoint: it counts the bytes between two machines, and may keep them."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from bus.net.endpoints import address_of, key_of, with_key


class Relay:
    """Relays the connections of one tcp endpoint. `counted`: the bytes to it; `seen`: those of both directions."""

    def __init__(self, *, keep: bool = False) -> None:
        self.counted = 0
        self.seen = bytearray()
        self._keep = keep
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._target = ("", 0)

    def before(self, endpoint: str) -> str:
        """Return an endpoint that leads to this one through the relay, with its node's key."""
        host, port = address_of(endpoint).removeprefix("tcp://").split(":")
        self._target = (host, int(port))
        self._run(self._accept)
        return with_key(f"tcp://127.0.0.1:{self._listener.getsockname()[1]}", key_of(endpoint))

    def close(self) -> None:
        """Close every connection and end the threads."""
        for end in (self._listener, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed at the end
            while True:
                here, _ = self._listener.accept()
                there = socket.create_connection(self._target)
                self._ends += [here, there]
                self._run(lambda here=here, there=there: self._carry(here, there, counts=True))
                self._run(lambda here=here, there=there: self._carry(there, here, counts=False))

    def _carry(self, source: socket.socket, target: socket.socket, *, counts: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self.counted += len(data) * counts
                if self._keep:
                    self.seen += data
                target.sendall(data)

    def _run(self, work: object) -> None:
        thread = threading.Thread(target=work, daemon=True)  # type: ignore[arg-type]
        thread.start()
        self._threads.append(thread)
