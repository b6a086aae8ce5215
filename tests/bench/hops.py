"""What a token pays for one more stage, where the stages compute exactly what they shall."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise
from statistics import median

from tests.bench.figures import Figure
from tests.bench.raw_hop import raw_hop_us
from tests.bench.streams import Timed
from tests.support.synthetic_engine import HASH_BYTES, Model
from tests.support.synthetic_ring import synthetic_ring

TOKEN_MS = 10.0
TOKENS = 60
ROUNDS = 5
HOPS = 2  # a token's way round two stages; on one stage it makes none


def measure() -> list[Figure]:
    """Two stages of 5 ms beside one of 10: half of what a token takes longer."""
    with ExitStack() as stack:
        rings = [stack.enter_context(synthetic_ring(Model(call_ms=TOKEN_MS / n), n)) for n in (1, 2)]
        rounds = [[_gap_us(ring.streams.generate((5, at), TOKENS)) for ring in rings] for at in range(ROUNDS)]
    one, two = (median(column) for column in zip(*rounds, strict=True))
    note = (
        f"a token of 2 stages takes {two:.0f} µs, of one that computes as long {one:.0f} µs; the difference by {HOPS}"
    )
    floor = raw_hop_us(HASH_BYTES * 4, pause_ms=TOKEN_MS / HOPS)
    return [Figure("hop_us", (two - one) / HOPS, "µs", "≤ 150", floor, note=note)]


def _gap_us(tokens: list[Timed]) -> float:
    return median((b.at_ns - a.at_ns) / 1000 for a, b in pairwise(tokens[1:]))
