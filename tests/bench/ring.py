"""What a ring of real nodes costs, and what many streams gain on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from statistics import median

from models.catalogue import DEFAULT_MODEL
from tests.bench.figures import Figure
from tests.bench.raw_hop import raw_hop_us
from tests.bench.streams import Streams, Timed, node_config, place
from tests.rig_nodes import NodeProcess, nodes

STAGES = (1, 2, 4)
ROUNDS = 5
TOKENS = 48
PROMPT = tuple(range(100, 132))
CROWD = 8
CROWDED = (1, 2)
ROW_BYTES = 576 * 2
STEP_MS = 5.0  # about what half of the model takes for a token


def measure() -> list[Figure]:
    """The hop, the ratios of one stream, and the gains of many: all rings stand at once and take turns."""
    with ExitStack() as stack:
        rings = {n: stack.enter_context(_ring(n)) for n in STAGES}
        for streams in rings.values():
            streams.generate(PROMPT, 8)
        rounds = [{n: rings[n].generate(PROMPT, TOKENS) for n in STAGES} for _ in range(ROUNDS)]
        crowds = [{n: _crowd_rate(rings[n]) for n in CROWDED} for _ in range(ROUNDS)]
    rate = {n: median(_rate(turn[n]) for turn in rounds) for n in STAGES}
    crowd = {n: median(turn[n] for turn in crowds) for n in CROWDED}
    hop = median(_beside_compute_us(turn[2]) / 2 for turn in rounds)
    return [
        Figure(
            "hop_us",
            hop,
            "µs",
            "≤ 300",
            raw_hop_us(ROW_BYTES, STEP_MS),
            note="2 stages: time of a token not spent in engines, a hop",
        ),
        _ratio("decode_eff_2", rate[2], rate[1], "≥ 0.95", "one stream, 2 stages beside 1"),
        _ratio("decode_eff_4", rate[4], rate[1], "≥ 0.90", "one stream, 4 stages beside 1"),
        _ratio("batch_gain_8", crowd[1], rate[1], "", "1 stage, 8 streams beside 1"),
        _ratio("ring2_gain_8", crowd[2], crowd[1], "≥ 1.5", "8 streams, 2 stages beside 1"),
    ]


def _ratio(name: str, value: float, baseline: float, goal: str, what: str) -> Figure:
    note = f"{what}: {value:.1f} and {baseline:.1f} tok/s"
    return Figure(name, value / baseline, "ratio", goal, baseline=baseline, note=note)


@contextmanager
def _ring(stages: int) -> Iterator[Streams]:
    """A cluster of `stages` nodes with the default model over all of them."""
    with nodes(*(f"bench-{i}" for i in range(stages)), arguments=["--engine", "numpy", "--threads", "1"]) as started:
        _wait_for_all(started)
        config = node_config(started[0].data_dir)
        instance = place(config, DEFAULT_MODEL)
        assert len(instance.stages) == stages, f"{len(instance.stages)} stages where {stages} were wanted"
        streams = Streams(config.run_path, instance)
        try:
            yield streams
        finally:
            streams.close()


def _wait_for_all(started: list[NodeProcess]) -> None:
    deadline = time.monotonic() + 30
    while len(started[0].get("/v1/topology")["nodes"]) < len(started):
        assert time.monotonic() < deadline, "the nodes did not find each other"


def _crowd_rate(streams: Streams) -> float:
    """Tokens a second of eight streams together, while all of them decode."""
    prompts = [tuple(token + 7 * stream for token in PROMPT) for stream in range(CROWD)]
    came = streams.generate_side_by_side(prompts, TOKENS)
    begun, ended = max(tokens[4].at_ns for tokens in came), min(tokens[-1].at_ns for tokens in came)
    counted = sum(begun <= token.at_ns <= ended for tokens in came for token in tokens)
    return counted / ((ended - begun) / 1e9)


def _rate(tokens: list[Timed]) -> float:
    return (len(tokens) - 1) / ((tokens[-1].at_ns - tokens[0].at_ns) / 1e9)


def _beside_compute_us(tokens: list[Timed]) -> float:
    gaps = [(b.at_ns - a.at_ns - b.compute_ns) / 1000 for a, b in pairwise(tokens)]
    return median(gaps)
