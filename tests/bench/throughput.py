"""Tokens a second of all streams together, over streams and stages: the curves that `tests.bench.plot` draws."""

from __future__ import annotations

import os
from statistics import median

from tests.bench.figures import Figure
from tests.bench.peers.ours import Ours, ring

STAGES = (1, 2, 4)
STREAMS = (1, 2, 4, 8, 16)
ROUNDS = 3
PROMPT = 32
TOKENS = 48


def measure() -> list[Figure]:
    """One figure: its value the highest point. Stages beyond the machine's cores share them, a thread each."""
    points = [point for stages in STAGES for point in _points(stages)]
    stages, streams, best = max(points, key=lambda point: point[2])
    note = f"most at {stages} stages and {streams} streams, on {os.cpu_count()} cores; see docs/throughput.png"
    return [Figure("throughput", best, "tok/s", "", note=note, points=tuple(points))]


def _points(stages: int) -> list[tuple[int, int, float]]:
    with ring(stages, "fast") as ours:
        rounds = [[_rate(ours, streams) for streams in STREAMS] for _ in range(ROUNDS)]
    return [(stages, streams, median(rates)) for streams, rates in zip(STREAMS, zip(*rounds, strict=True), strict=True)]


def _rate(ours: Ours, streams: int) -> float:
    return ours.streams_rate(streams, PROMPT, TOKENS)
