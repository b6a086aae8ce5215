"""`ring.scheduler`: the order in which rings of stages compute, each stage in its own process. Nothing is timed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from random import Random

import pytest

from ring.prefix_cache import BLOCK
from ring.ring_memory import MAX_WAITING
from ring.scheduler import PROMPT_CHUNK
from tests.bench.fairness import jain
from tests.support.ring.synthetic_engine import DECODE_ROWS, Call, Model
from tests.support.ring.synthetic_ring import SyntheticRing, expected_tokens, synthetic_ring

FREE = Model()
SLOW = Model(call_ms=2.0)  # so that frames come while a stage is busy
REPEATING = Model(n_layers=2, window=2, vocab_size=8)  # a token follows from the three before it
NO_END = 4096  # tokens


def prompt_of(length: int, seed: int = 1, model: Model = FREE) -> list[int]:
    random = Random(seed)
    return [random.randrange(model.vocab_size) for _ in range(length)]


def is_prompt(call: Call) -> bool:
    """Return whether the call had a part of a long prompt."""
    return any(rows > DECODE_ROWS for _, _, rows in call.chunks)


def is_decode(call: Call) -> bool:
    """Return whether the call had a token's step."""
    return any(rows <= DECODE_ROWS for _, _, rows in call.chunks)


def open_running(ring: SyntheticRing, count: int, tokens: int = 1) -> list[int]:
    """Open sessions without an end, and wait until all have as many tokens."""
    sessions = [ring.streams.open(prompt_of(4, seed), NO_END) for seed in range(count)]
    received = [ring.streams.received(session) for session in sessions]
    ring.streams.receive(*received, tokens=tokens)
    return sessions


def finish(ring: SyntheticRing, prompt: Sequence[int], tokens: int) -> list[int]:
    """Generate a whole session while others run."""
    received = ring.streams.received(session := ring.streams.open(prompt, tokens))
    ring.streams.receive(received)
    ring.streams.end(session)
    return received.ids


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_many_sessions_get_the_whole_models_tokens(stages: int) -> None:
    lengths = [1, 2, DECODE_ROWS, DECODE_ROWS + 1, PROMPT_CHUNK, PROMPT_CHUNK + 1, 3 * PROMPT_CHUNK + 7, 40]
    prompts = [prompt_of(length, seed) for seed, length in enumerate(lengths)]
    with synthetic_ring(FREE, stages) as ring:
        came = ring.streams.generate_side_by_side([tuple(prompt) for prompt in prompts], 24)
        for prompt, tokens in zip(prompts, came, strict=True):
            assert [timed.token for timed in tokens] == expected_tokens(FREE, prompt, 24)
        assert not any(stage.dropped for stage in ring.look())


def test_16_bit_hidden_states_give_the_same_tokens() -> None:
    model = Model(hidden_size=24, dtype="bfloat16")
    with synthetic_ring(model, 2) as ring:
        assert finish(ring, prompt_of(300), 16) == expected_tokens(model, prompt_of(300), 16)


@pytest.mark.parametrize("entering", [False, True], ids=["while it decodes", "while its prompt enters"])
def test_early_close_frees_the_slot_on_every_stage(entering: bool) -> None:
    with synthetic_ring(SLOW, 4) as ring:
        running = open_running(ring, 5, tokens=3)
        left = ring.streams.open(prompt_of(40 * PROMPT_CHUNK), NO_END) if entering else running.pop()
        held = len(running) + 1
        assert ring.comes_to(lambda stage: (stage.sessions, stage.slots) == (held, held))
        ring.streams.end(left)
        assert ring.comes_to(lambda stage: (stage.sessions, stage.slots) == (held - 1, held - 1))
        for seed, session in enumerate(running):
            received = ring.streams.received(session)
            ring.streams.receive(received, tokens=len(received.tokens) + 5)
            assert received.ids == expected_tokens(SLOW, prompt_of(4, seed), len(received.ids))


def test_eight_streams_get_equal_shares() -> None:
    with synthetic_ring(SLOW, 4) as ring:
        received = [ring.streams.received(session) for session in open_running(ring, 8)]
        before = [len(session.tokens) for session in received]
        ring.streams.receive_until(lambda: sum(len(session.tokens) for session in received) >= sum(before) + 240)
        given = [len(session.tokens) - start for session, start in zip(received, before, strict=True)]
        assert jain(given) >= 0.95, given


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_scattered_sessions_merge_into_micro_batches(stages: int) -> None:
    with synthetic_ring(SLOW, stages) as ring:
        sessions = [session for _ in range(2 * stages) for session in open_running(ring, 1)]
        received = [ring.streams.received(session) for session in sessions]
        ring.streams.receive(*received, tokens=max(len(session.tokens) for session in received) + 30)
        for stage in ring.look(journal=True):
            assert {len(call.chunks) for call in list(stage.calls)[-20:]} == {2}


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_decode_steps_run_between_prompt_chunks(stages: int) -> None:
    chunks = 24
    with synthetic_ring(SLOW, stages) as ring:
        open_running(ring, 2 * stages, tokens=3)
        prompt = prompt_of(chunks * PROMPT_CHUNK)
        assert finish(ring, prompt, 1) == expected_tokens(SLOW, prompt, 1)
        for stage in ring.look(journal=True):
            entering = [index for index, call in enumerate(stage.calls) if is_prompt(call)]
            assert len(entering) == chunks
            in_a_row = longest_run(stage.calls[entering[0] : entering[-1] + 1])
            assert in_a_row <= (1 if stages == 1 else stages + 1), (
                "no chunk overtakes a step, and so many are under way"
            )


def longest_run(calls: Sequence[Call]) -> int:
    """Return the most prompt chunks in a row without a token's step in or between them."""
    longest = run = 0
    for call in calls:
        run = 0 if is_decode(call) else run + 1
        longest = max(longest, run)
    return longest


@pytest.mark.parametrize("last", [None, Model(call_ms=15.0)], ids=["equal stages", "a slow last stage"])
def test_chunks_in_flight_are_bounded(last: Model | None) -> None:
    with synthetic_ring(SLOW, 4, last=last) as ring:
        prompt = prompt_of(32 * PROMPT_CHUNK)
        assert finish(ring, prompt, 2) == expected_tokens(SLOW, prompt, 2)
        first, *_, final = ring.look(journal=True)
        through = [call.ended_ns for call in final.calls if is_prompt(call)]
        sent = [call.begun_ns for call in first.calls if is_prompt(call)]
        ahead = [number - bisect_right(through, begun) for number, begun in enumerate(sent)]
        assert max(ahead) <= 4, "one chunk for each stage, and one that waits"


@pytest.mark.parametrize("stages", [1, 2])
def test_sessions_wait_in_order_for_memory(stages: int) -> None:
    wanted = [60, 90, 10]  # positions; the last would fit beside the first, and does not overtake
    with synthetic_ring(FREE, stages, positions=100) as ring:
        sessions = [ring.streams.open(prompt_of(4, seed), most - 4) for seed, most in enumerate(wanted)]
        running, big, small = (ring.streams.received(session) for session in sessions)
        ring.streams.receive_until(lambda: running.finished and bool(small.queue_positions))
        assert (running.queue_positions, big.queue_positions, small.queue_positions) == ([(0, 0)], [(1, 0)], [(2, 0)])
        assert ring.comes_to(lambda stage: stage.slots == 1)
        ring.streams.end(sessions[0])
        ring.streams.receive(big, small)
        assert (big.queue_positions, small.queue_positions) == ([(1, 0), (0, 0)], [(2, 0), (0, 0)])
        assert big.ids == expected_tokens(FREE, prompt_of(4, 1), 86)
        assert small.ids == expected_tokens(FREE, prompt_of(4, 2), 6)


def test_sessions_behind_a_closed_one_move_up() -> None:
    with synthetic_ring(FREE, 2, positions=100) as ring:
        sessions = [ring.streams.open(prompt_of(4, seed), 96) for seed in range(4)]
        last = ring.streams.received(sessions[-1])
        ring.streams.receive_until(lambda: last.queue_positions == [(3, 0)])
        ring.streams.end(sessions[1])
        ring.streams.receive_until(lambda: last.queue_positions == [(3, 0), (2, 0)])
        ring.streams.end(sessions[0])
        ring.streams.receive_until(lambda: last.queue_positions == [(3, 0), (2, 0), (1, 0)])
        assert ring.comes_to(lambda stage: stage.slots == 1)


def test_full_queue_and_oversized_session_are_refused() -> None:
    with synthetic_ring(FREE, 2, positions=100) as ring:
        for seed in range(1 + MAX_WAITING):
            ring.streams.open(prompt_of(4, seed), 96)
        refused = ring.streams.received(ring.streams.open(prompt_of(4), 8))
        endless = ring.streams.received(ring.streams.open(prompt_of(4), 97))
        ring.streams.receive_until(lambda: bool(refused.failure and endless.failure), failures=True)
        assert refused.failure is not None
        assert endless.failure is not None
        assert (refused.failure.code, endless.failure.code) == ("queue_full", "too_large")
        assert refused.failure.retry_after_s >= 1
        assert "101 tokens" in endless.failure.message
        assert "100" in endless.failure.message


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_shared_prefix_is_not_computed_again(stages: int) -> None:
    shared, ends, tokens = prompt_of(5 * BLOCK), [prompt_of(11, 2), prompt_of(70, 3)], 12
    with synthetic_ring(FREE, stages) as ring:
        for end in ends:
            before = [stage.counts.rows for stage in ring.look()]
            received = ring.streams.received(session := ring.streams.open([*shared, *end], tokens))
            ring.streams.receive(received)
            ring.streams.end(session)
            assert received.ids == expected_tokens(FREE, [*shared, *end], tokens)
            known = 0 if end is ends[0] else len(shared)
            assert received.queue_positions == [(0, known)]
            rows = len(shared) + len(end) - known + tokens - 1
            assert [stage.counts.rows - had for stage, had in zip(ring.look(), before, strict=True)] == [rows] * stages


@pytest.mark.parametrize("stages", [1, 2])
def test_drafts_save_passes_in_a_repeating_text(stages: int) -> None:
    prompt, tokens = prompt_of(12, model=REPEATING), 200
    with synthetic_ring(REPEATING, stages) as ring:
        expected = expected_tokens(REPEATING, prompt, tokens)
        passes = []
        for drafts in (0, 8):
            received = ring.streams.received(session := ring.streams.open(prompt, tokens, drafts))
            ring.streams.receive(received)
            ring.streams.end(session)
            assert received.ids == expected
            passes.append(received.passes)
        assert passes[0] == tokens
        assert passes[1] <= tokens / 1.5
        counts = ring.look()[-1].counts
        assert 0 < counts.accepted < counts.drafted, "none was refuted, so none was forgotten"


def test_drafts_change_no_token_of_other_texts() -> None:
    prompts = [prompt_of(40, seed) for seed in range(6)]
    with synthetic_ring(FREE, 2) as ring:
        received = [ring.streams.received(ring.streams.open([*prompt, *prompt], 60, drafts=8)) for prompt in prompts]
        ring.streams.receive(*received)
        for prompt, session in zip(prompts, received, strict=True):
            assert session.ids == expected_tokens(FREE, [*prompt, *prompt], 60)
