"""The gain of a ring on a long prompt, of which all stages compute chunks at once."""

from __future__ import annotations

from contextlib import ExitStack
from random import Random
from statistics import median

from ring.scheduler import PROMPT_CHUNK
from tests.bench.figures import Figure
from tests.support.ring.synthetic_engine import Model
from tests.support.ring.synthetic_ring import SyntheticRing, synthetic_ring

STAGES = 4
CHUNKS = 8
CHUNK_MS = 20.0  # on one stage
ROUNDS = 5


def measure() -> list[Figure]:
    """Compare the time to the first token on one stage with that on four stages with a quarter of the work each."""
    with ExitStack() as stack:
        one, four = (stack.enter_context(synthetic_ring(_model(stages), stages)) for stages in (1, STAGES))
        random = Random(1)
        rounds = [[_first_token_s(ring, random) for ring in (one, four)] for _ in range(ROUNDS)]
    alone, split = (median(column) for column in zip(*rounds, strict=True))
    ideal = STAGES * CHUNKS / (CHUNKS + STAGES - 1)
    note = (
        f"{CHUNKS} chunks, {STAGES} stages of {CHUNK_MS:g} ms a chunk: first token after {1000 * split:.0f} ms,"
        f" {1000 * alone:.0f} ms on one; gain {alone / split:.2f} of {ideal:.2f}"
    )
    return [Figure("prefill_gain", alone / split / ideal, "ratio", "≥ 0.8", baseline=ideal, note=note)]


def _model(stages: int) -> Model:
    return Model(prompt_row_ms=CHUNK_MS * STAGES / stages / PROMPT_CHUNK)


def _first_token_s(ring: SyntheticRing, random: Random) -> float:
    """Return the seconds to the first token of a new prompt."""
    prompt = [random.randrange(ring.model.vocab_size) for _ in range(CHUNKS * PROMPT_CHUNK)]
    session = ring.streams.open(prompt, 1)
    received = ring.streams.received(session)
    ring.streams.receive(received)
    ring.streams.end(session)
    return (received.tokens[0].at_ns - received.opened_ns) / 1e9
