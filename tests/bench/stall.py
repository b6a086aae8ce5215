"""How long a running stream pauses while the long prompt of another session is computed."""

from __future__ import annotations

from itertools import pairwise
from statistics import median

from ring.scheduler import PROMPT_CHUNK
from tests.bench.figures import Figure
from tests.bench.streams import StreamResult
from tests.support.ring.synthetic_engine import DECODE_ROWS, Model
from tests.support.ring.synthetic_ring import synthetic_ring
from tests.support.ring.synthetic_stage import Seen

STAGES = 2
STEP_MS = 10.0
CHUNK_MS = 80.0  # a chunk of a prompt costs about eight steps on a CPU
PROMPT = 2048
STEADY = 50  # tokens


def measure() -> list[Figure]:
    """Compare the longest gap between two tokens with two steady gaps plus the time of one chunk on all stages."""
    with synthetic_ring(Model(call_ms=STEP_MS, prompt_row_ms=(CHUNK_MS - STEP_MS) / PROMPT_CHUNK), STAGES) as ring:
        streams = ring.streams
        running = streams.received(streams.open((1, 2, 3), 4096))
        streams.receive(running, tokens=STEADY)
        before = len(running.tokens)
        long = streams.received(streams.open([token % ring.model.vocab_size for token in range(PROMPT)], 1))
        streams.receive(long)
        computed = len(running.tokens)
        streams.receive(running, tokens=computed + 1)
        chunk = sum(_chunk_ms(stage) for stage in ring.look(journal=True))
    steady, longest = median(_gaps_ms(running)[1:before]), max(_gaps_ms(running)[before - 1 :])
    note = (
        f"longest {longest:.1f} ms, steady {steady:.1f} ms, a chunk {chunk:.1f} ms on {STAGES} stages together;"
        f" {computed - before} tokens came while {PROMPT} of the prompt were computed"
    )
    return [Figure("stall_ratio", longest / (2 * steady + chunk), "ratio", "≤ 1", baseline=steady, note=note)]


def _gaps_ms(received: StreamResult) -> list[float]:
    return [(b.at_ns - a.at_ns) / 1e6 for a, b in pairwise(received.tokens)]


def _chunk_ms(stage: Seen) -> float:
    """Return the median time of the calls with a chunk of a prompt."""
    long = [call for call in stage.calls if any(rows > DECODE_ROWS for _, _, rows in call.chunks)]
    return median((call.ended_ns - call.begun_ns) / 1e6 for call in long)
