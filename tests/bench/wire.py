"""The bytes that one decoded token takes between two stages, counted by a tcp relay between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from bus.dataplane.frames import HEADER_BYTES
from cluster.placement import Instance
from tests.bench.figures import Figure
from tests.support.network.dataplane import tcp
from tests.support.network.relay import Relay
from tests.support.ring.synthetic_engine import Model
from tests.support.ring.synthetic_ring import SyntheticRing, synthetic_ring

HIDDEN = 4096  # of a model of 8 billion parameters
PROMPTS = (10, 10_000)
TOKENS = 200
STEP_MS = 2.0  # long enough to read the count between two frames
MARGIN = 96 + 33  # bytes in addition to two for each value: those of the goal, and what CURVE adds to a frame


def relayed(relay: Relay, instance: Instance) -> Instance:
    """Return the instance with its second stage behind the relay."""
    first, second = instance.stages
    moved = msgspec.structs.replace(second, endpoints=(relay.before(tcp(second.endpoints)),))
    return msgspec.structs.replace(instance, stages=(first, moved))


@contextmanager
def relayed_ring() -> Iterator[tuple[SyntheticRing, Relay]]:
    """Run two stages of a model of 16-bit hidden states, with a relay between them."""
    relay = Relay()
    model = Model(call_ms=STEP_MS, hidden_size=HIDDEN, dtype="float16")
    try:
        with synthetic_ring(model, 2, over="curve", seen_as=lambda instance: relayed(relay, instance)) as ring:
            yield ring, relay
    finally:
        relay.close()


def measure() -> list[Figure]:
    """Count header, payload and ZeroMQ's framing of a decoded token's hop, after a short and a long prompt."""
    with relayed_ring() as (ring, relay):
        short, long = (_bytes_a_token(ring, relay, length) for length in PROMPTS)
    allowed = 2 * HIDDEN + MARGIN
    note = (
        f"tcp bytes for {HIDDEN} values of 16 bits, with the header of {HEADER_BYTES}: {short:.1f} after a prompt of"
        f" {PROMPTS[0]} tokens, {long:.1f} after {PROMPTS[1]}"
    )
    return [Figure("bytes_per_hop", max(short, long), "bytes", f"≤ {allowed}", 2 * HIDDEN, note=note)]


def _bytes_a_token(ring: SyntheticRing, relay: Relay, length: int) -> float:
    """Count from the first token to the last: with heartbeats, without the prompt and the opening."""
    session = ring.streams.open([token % ring.model.vocab_size for token in range(length)], TOKENS)
    received = ring.streams.received(session)
    ring.streams.receive(received, tokens=1)
    before, already = relay.counted, len(received.tokens)
    ring.streams.receive(received)
    counted = relay.counted - before
    ring.streams.end(session)
    return counted / (len(received.tokens) - already)
