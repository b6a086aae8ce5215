"""The cost of a ring of real nodes, and the gain of many streams on it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from statistics import median

from tests.bench.figures import Figure
from tests.bench.ours import Ours, ring
from tests.bench.raw_hop import raw_hop_us

STAGES = (1, 2, 4)
ROUNDS = 7
TOKENS = 64
SHORT, LONG = 32, 512
CROWD = 8
ROW_BYTES = 576 * 2
COMPUTING_MS = 4.0  # of one stage of two, while the other sleeps

TURNS: dict[str, tuple[int, Callable[[Ours], float]]] = {
    "one": (1, lambda ours: ours.decode_rate(SHORT, TOKENS)),
    "one on 2": (2, lambda ours: ours.decode_rate(SHORT, TOKENS)),
    "one on 4": (4, lambda ours: ours.decode_rate(SHORT, TOKENS)),
    "crowd": (1, lambda ours: ours.streams_rate(CROWD, SHORT, TOKENS)),
    "crowd on 2": (2, lambda ours: ours.streams_rate(CROWD, SHORT, TOKENS)),
    "prefill": (1, lambda ours: ours.prefill_rate(LONG)),
    "hop": (2, lambda ours: ours.beside_compute_us(SHORT, TOKENS) / 2),
}
"""The measurements of one round: the number of stages, and the rate to measure."""


def measure() -> list[Figure]:
    """Measure the hop, the ratios of one stream, and the gains of many: all rings run at once and take turns."""
    with ExitStack() as stack:
        rings = {stages: stack.enter_context(ring(stages, "fast")) for stages in STAGES}
        rounds = [{name: turn(rings[stages]) for name, (stages, turn) in TURNS.items()} for _ in range(ROUNDS)]
    rates = {name: median(turn[name] for turn in rounds) for name in TURNS}
    crowd = f"1 stage, {CROWD} streams beside its own prefill ({rates['crowd'] / rates['one']:.1f} × one stream)"
    return [
        _hop(rates["hop"]),
        _ratio("decode_eff_2", rates["one on 2"], rates["one"], "≥ 0.95", "one stream, 2 stages beside 1"),
        _ratio("decode_eff_4", rates["one on 4"], rates["one"], "≥ 0.90", "one stream, 4 stages beside 1"),
        _ratio("batch_gain_8", rates["crowd"], rates["prefill"], "≥ 0.7", crowd),
        _ratio("ring2_gain_8", rates["crowd on 2"], rates["crowd"], "≥ 1.5", "8 streams, 2 stages beside 1"),
    ]


def _hop(microseconds: float) -> Figure:
    note = "2 stages: time of a token not spent in engines, a hop, beside engines that empty the caches"
    return Figure("hop_cold_us", microseconds, "µs", "", raw_hop_us(ROW_BYTES, COMPUTING_MS), note=note)


def _ratio(name: str, value: float, baseline: float, goal: str, what: str) -> Figure:
    note = f"{what}: {value:.1f} and {baseline:.1f} tok/s"
    return Figure(name, value / baseline, "ratio", goal, baseline=baseline, note=note)
