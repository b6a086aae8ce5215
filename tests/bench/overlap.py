"""Whether all stages of a ring compute all the time if there are two streams per stage."""

from __future__ import annotations

from statistics import mean

from tests.bench.figures import Figure
from tests.bench.streams import Timed
from tests.support.ring.synthetic_engine import Model
from tests.support.ring.synthetic_ring import synthetic_ring
from tests.support.ring.synthetic_stage import Seen

RINGS = (2, 4, 8)
STREAMS = 2  # per stage
STEP_MS = 10.0
TOKENS = 72
SETTLED = 12  # tokens of each stream that are not counted: micro-batches form, the first is not full


def measure() -> list[Figure]:
    """Return one figure for each size of ring."""
    return [_overlap(stages) for stages in RINGS]


def _overlap(stages: int) -> Figure:
    """Compare tokens per second with those of a ring with stages that never wait: two tokens for each step."""
    prompts = [(stream + 1, stages) for stream in range(STREAMS * stages)]
    with synthetic_ring(Model(call_ms=STEP_MS), stages) as ring:
        rate = together(ring.streams.generate_side_by_side(prompts, TOKENS))
        step_ms = max(_step_ms(stage) for stage in ring.look(journal=True))
    ideal = STREAMS * 1000 / step_ms
    note = f"{len(prompts)} streams, {stages} stages, {STREAMS} rows in {step_ms:.2f} ms: {rate:.1f} tok/s"
    return Figure(f"overlap_eff_{stages}", rate / ideal, "ratio", "≥ 0.95", baseline=ideal, note=note)


def _step_ms(stage: Seen) -> float:
    """Return the mean time of a call: the modeled cost and what the machine added."""
    return mean((call.ended_ns - call.begun_ns) / 1e6 for call in stage.calls)


def together(came: list[list[Timed]]) -> float:
    """Return the tokens per second of all streams, without the first tokens of each."""
    begun, ended = max(tokens[SETTLED].at_ns for tokens in came), min(tokens[-1].at_ns for tokens in came)
    counted = sum(begun < token.at_ns <= ended for tokens in came for token in tokens)
    return counted / ((ended - begun) / 1e9)
