"""Tokens per second of all streams together, over streams and stages: the curves that `tests.bench.plot` draws."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from statistics import median

from tests.bench.figures import Figure
from tests.bench.ours import Ours, ring

STAGES = (1, 2, 4)
STREAMS = (1, 2, 4, 8, 16)
ROUNDS = 3
PROMPT = 32
TOKENS = 48


def measure() -> list[Figure]:
    """Return one figure; its value is the highest point. If there are more stages than cores, stages share them."""
    with ExitStack() as stack:
        rings = {stages: stack.enter_context(ring(stages, "fast")) for stages in STAGES}
        rounds = [_round(rings) for _ in range(ROUNDS)]
    points = tuple((stages, streams, median(turn[stages, streams] for turn in rounds)) for stages, streams in rounds[0])
    stages, streams, best = max(points, key=lambda point: point[2])
    note = f"most at {stages} stages and {streams} streams, on {os.cpu_count()} cores; see docs/throughput.png"
    return [Figure("throughput", best, "tok/s", "", note=note, points=points)]


def _round(rings: Mapping[int, Ours]) -> dict[tuple[int, int], float]:
    """Measure every ring in turn for each number of streams, so that other load affects all of them."""
    return {
        (stages, streams): ours.streams_rate(streams, PROMPT, TOKENS)
        for streams in STREAMS
        for stages, ours in rings.items()
    }
