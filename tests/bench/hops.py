"""The cost of one more stage for a token, with stages of a fixed computing time."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise
from statistics import median

from tests.bench.figures import Figure
from tests.bench.raw_hop import raw_hop_us
from tests.bench.streams import Timed
from tests.support.ring.synthetic_engine import HASH_BYTES, Model
from tests.support.ring.synthetic_ring import synthetic_ring

TOKEN_MS = 10.0
TOKENS = 60
ROUNDS = 5
HOPS = 2  # hops of a token round a ring of two stages; a ring of one stage has none


def measure() -> list[Figure]:
    """Compare two stages of 5 ms with one of 10 ms: a hop is half of the time that a token takes longer."""
    with ExitStack() as stack:
        rings = [stack.enter_context(synthetic_ring(Model(call_ms=TOKEN_MS / n), n)) for n in (1, 2)]
        rounds = [[_gap_us(ring.streams.generate((5, at), TOKENS)) for ring in rings] for at in range(ROUNDS)]
    one, two = (median(column) for column in zip(*rounds, strict=True))
    note = (
        f"a token takes {two:.0f} µs on 2 stages, {one:.0f} µs on one that computes as long; the difference by {HOPS}"
    )
    floor = raw_hop_us(HASH_BYTES * 4, pause_ms=TOKEN_MS / HOPS)
    return [Figure("hop_us", (two - one) / HOPS, "µs", "≤ 150", floor, note=note)]


def _gap_us(tokens: list[Timed]) -> float:
    return median((b.at_ns - a.at_ns) / 1000 for a, b in pairwise(tokens[1:]))
