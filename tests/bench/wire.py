"""What one decoded token puts on the wire between two stages, counted by a tcp relay between them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec

from bus.frame import HEADER_BYTES
from cluster.placement import Instance
from tests.bench.figures import Figure
from tests.rig_synthetic_engine import Model
from tests.rig_synthetic_ring import SyntheticRing, synthetic_ring

HIDDEN = 4096  # of a model of 8 billion parameters
PROMPTS = (10, 10_000)
TOKENS = 200
STEP_MS = 2.0  # so long that a count is read between two frames
MARGIN = 96  # bytes beside two for each value


class Relay:
    """Carries one tcp end point's connections, and counts the bytes that go towards it."""

    def __init__(self) -> None:
        self.counted = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._target = ("", 0)

    def before(self, instance: Instance) -> Instance:
        """The instance whose second stage is reached through here only."""
        first, second = instance.stages
        tcp = next(endpoint for endpoint in second.endpoints if endpoint.startswith("tcp://"))
        host, port = tcp.removeprefix("tcp://").split(":")
        self._target = (host, int(port))
        self._run(self._accept)
        here = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        moved = msgspec.structs.replace(second, endpoints=(here,))
        return msgspec.structs.replace(instance, stages=(first, moved))

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
                target.sendall(data)

    def _run(self, work: object) -> None:
        thread = threading.Thread(target=work, daemon=True)  # type: ignore[arg-type]
        thread.start()
        self._threads.append(thread)


@contextmanager
def relayed_ring() -> Iterator[tuple[SyntheticRing, Relay]]:
    """Two stages of a model of 16-bit hidden states, with a relay between."""
    relay = Relay()
    model = Model(call_ms=STEP_MS, hidden_size=HIDDEN, dtype="float16")
    try:
        with synthetic_ring(model, 2, seen_as=relay.before) as ring:
            yield ring, relay
    finally:
        relay.close()


def measure() -> list[Figure]:
    """Header, payload and ZeroMQ's framing for a decoded token and hop, for a short and a long prompt."""
    with relayed_ring() as (ring, relay):
        short, long = (_bytes_a_token(ring, relay, length) for length in PROMPTS)
    allowed = 2 * HIDDEN + MARGIN
    note = (
        f"tcp bytes for {HIDDEN} values of 16 bits, header of {HEADER_BYTES} and all: {short:.1f} after a prompt of"
        f" {PROMPTS[0]} tokens, {long:.1f} after {PROMPTS[1]}"
    )
    return [Figure("bytes_per_hop", max(short, long), "bytes", f"≤ {allowed}", 2 * HIDDEN, note=note)]


def _bytes_a_token(ring: SyntheticRing, relay: Relay, length: int) -> float:
    """From the first token to the last: heartbeats count, the prompt and the opening do not."""
    session = ring.streams.open([token % ring.model.vocab_size for token in range(length)], TOKENS)
    heard = ring.streams.heard(session)
    ring.streams.hear(heard, tokens=1)
    before, already = relay.counted, len(heard.tokens)
    ring.streams.hear(heard)
    counted = relay.counted - before
    ring.streams.end(session)
    return counted / (len(heard.tokens) - already)
