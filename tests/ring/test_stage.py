"""`ring.stage`: rings of real stages compared with the unsplit model, ends of sessions, and dropped frames."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bus.dataplane import transport as transport_module
from bus.dataplane.access import best_endpoint
from bus.dataplane.frames import Flag, Frame
from bus.dataplane.transport import Transport
from cluster.sampling import SamplingParams
from engines.numpy.engine import NumpyEngine
from ring import relay
from ring import stage as stage_module
from ring.scheduler import PROMPT_CHUNK
from tests.support.bus import WITHIN_S, in_time
from tests.support.engines import Ring
from tests.support.models import TINY_VOCAB
from tests.support.ring.stage_ring import CUTS, EPOCH, GREEDY, PROMPT, SAMPLED, Gateway, stage_ring


@pytest.mark.parametrize("count", CUTS)
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_rings_give_the_whole_models_tokens(
    weights: Path, reference: Ring, count: int, sampling: SamplingParams
) -> None:
    expected = reference.generate(PROMPT, 24, sampling).tokens
    with stage_ring(weights, count) as ring:
        assert ring.generate(1, PROMPT, 24, sampling) == expected
        assert ring.all_closed()
        assert not any(stage.dropped for stage in ring.stages)


@pytest.mark.parametrize("count", CUTS)
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("drafts", [0, 4])
def test_replay_continues_with_the_same_tokens(
    weights: Path, reference: Ring, count: int, sampling: SamplingParams, drafts: int
) -> None:
    total = 40
    expected = reference.generate(PROMPT, total, sampling).tokens
    with stage_ring(weights, count) as ring:
        for session, done in enumerate((1, 7, 21, total - 1)):
            prompt = [*PROMPT, *expected[:done]]
            assert ring.generate(session, prompt, total - done, sampling, drafts) == expected[done:]
            received = ring.gateway.sessions[session]
            assert (received.first_position, received.finished) == (len(PROMPT) + done, True)


def test_replay_elsewhere_takes_over_a_running_session(weights: Path, reference: Ring) -> None:
    expected = reference.generate(PROMPT, 60, SAMPLED).tokens
    with stage_ring(weights, 2) as first, stage_ring(weights, 3) as second:
        first.gateway.open(1, PROMPT, 60, SAMPLED)
        first.gateway.receive(1, tokens=20)
        first.gateway.close(1)
        done = first.gateway.sessions[1].log.tokens
        assert 20 <= len(done) < 60, "the session has ended, so there is nothing to take over"
        assert done + second.generate(2, [*PROMPT, *done], 60 - len(done), SAMPLED) == expected


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("length", [1, PROMPT_CHUNK, PROMPT_CHUNK + 1, 2 * PROMPT_CHUNK + 40])
def test_prompt_of_any_length_is_computed_in_chunks(weights: Path, reference: Ring, count: int, length: int) -> None:
    prompt = np.random.default_rng(length).integers(3, TINY_VOCAB, length).tolist()
    with stage_ring(weights, count) as ring:
        assert ring.generate(1, prompt, 4, GREEDY) == reference.generate(prompt, 4).tokens
        assert ring.stages[-1].counts.forwards == -(-length // PROMPT_CHUNK) + 3


@pytest.mark.parametrize("count", CUTS)
def test_concurrent_sessions_do_not_disturb_each_other(weights: Path, reference: Ring, count: int) -> None:
    prompts = [PROMPT, PROMPT[::-1], [9] * (PROMPT_CHUNK + 20)]
    with stage_ring(weights, count) as ring:
        for session, prompt in enumerate(prompts):
            ring.gateway.open(session, prompt, 12, SAMPLED)
        ring.gateway.receive(0, 1, 2)
        for session, prompt in enumerate(prompts):
            expected = reference.generate(prompt, 12, SAMPLED).tokens
            assert ring.gateway.sessions[session].log.tokens == expected


def test_early_close_frees_the_slots_of_all_stages(weights: Path, reference: Ring) -> None:
    with stage_ring(weights, 3) as ring:
        for session in range(20):
            ring.gateway.open(session, max_tokens=400)
            ring.gateway.receive(session, tokens=2)
            ring.gateway.close(session)
        assert ring.all_closed()
        for stage in ring.stages:
            assert stage.stage.sessions._next_slot <= 3, "slots are not used again"
        assert ring.generate(99, PROMPT, 8, GREEDY) == reference.generate(PROMPT, 8).tokens


def test_frames_of_another_epoch_are_counted(weights: Path) -> None:
    with stage_ring(weights, 2) as ring:
        ring.gateway.open(1, epoch=EPOCH - 1)
        ring.gateway.open(2, epoch=EPOCH + 1)
        assert in_time(lambda: ring.stages[0].dropped.get("another epoch") == 2)
        assert ring.open_sessions() == [0, 0]


def test_frames_of_an_unknown_session_are_counted(weights: Path) -> None:
    with stage_ring(weights, 2) as ring:
        ring.gateway.close(404)
        ring.gateway.send(Frame(Flag.TOKEN, EPOCH, 404), np.array([1], np.int32))
        assert in_time(lambda: ring.stages[0].dropped == {"no such session": 1})


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", msgspec.msgpack.encode({"prompt": "text"}), b"\x81\xa1x" + b"\x91" * 10_000],
    ids=["empty", "damaged", "of a wrong type", "nested deeply"],
)
def test_unreadable_opening_is_counted(weights: Path, payload: bytes) -> None:
    with stage_ring(weights, 1) as ring:
        ring.gateway.send(Frame(Flag.OPEN, EPOCH, 1), payload)
        assert in_time(lambda: ring.stages[0].dropped == {"opening": 1})


@pytest.mark.parametrize("reply_to", [("nonsense",), ("ipc:///no/such/file",)])
def test_opening_without_reply_endpoint_takes_no_slot(
    weights: Path, reference: Ring, reply_to: tuple[str, ...]
) -> None:
    with stage_ring(weights, 1) as ring:
        ring.gateway.open(1, reply_to=reply_to)
        assert in_time(lambda: ring.stages[0].dropped == {"opening": 1})
        assert ring.open_sessions() == [0]
        assert ring.generate(2, PROMPT, 4, GREEDY) == reference.generate(PROMPT, 4).tokens


def test_second_opening_of_a_session_is_counted(weights: Path, reference: Ring) -> None:
    with stage_ring(weights, 2) as ring:
        ring.gateway.open(1, max_tokens=8)
        ring.gateway.open(1, max_tokens=8)
        ring.gateway.receive(1)
        assert ring.gateway.sessions[1].log.tokens == reference.generate(PROMPT, 8).tokens
        assert ring.stages[0].dropped == {"opening": 1}


def test_unknown_token_fails_its_session_only(weights: Path, reference: Ring) -> None:
    with stage_ring(weights, 2) as ring:
        ring.gateway.open(1, [5, TINY_VOCAB + 7])
        assert "vocabulary" in ring.failure(1)
        assert ring.all_closed()
        assert ring.generate(2, PROMPT, 4, GREEDY) == reference.generate(PROMPT, 4).tokens


def test_full_context_fails_its_session(weights: Path) -> None:
    with stage_ring(weights, 2) as ring:
        ring.gateway.open(1, [5] * 500, max_tokens=100)
        assert "512" in ring.failure(1)
        assert ring.all_closed()


def test_mismatched_parts_fail_their_session_only(weights: Path, reference: Ring) -> None:
    with stage_ring(weights, 2) as ring:
        ring.gateway.open(1, max_tokens=400)
        ring.gateway.receive(1, tokens=1)
        second = best_endpoint(ring.instance.stages[1].endpoints)
        ring.gateway.transport.send(second, Frame(Flag.MORE, EPOCH, 1), np.zeros((2, 3), np.float32))
        ring.gateway.transport.send(second, Frame(0, EPOCH, 1), np.zeros((2, 4), np.float32))
        assert "do not fit together" in ring.failure(1)
        assert ring.generate(2, PROMPT, 4, GREEDY) == reference.generate(PROMPT, 4).tokens


def test_non_finite_logits_fail_their_session_only(
    weights: Path, reference: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage_ring(weights, 1) as ring:
        forward = NumpyEngine.forward
        monkeypatch.setattr(NumpyEngine, "forward", lambda *a: [out * np.float32("nan") for out in forward(*a)])
        ring.gateway.open(1)
        assert "not finite" in ring.failure(1)
        monkeypatch.undo()
        assert ring.generate(2, PROMPT, 4, GREEDY) == reference.generate(PROMPT, 4).tokens


def test_lost_gateway_costs_the_ring_one_deadline(
    weights: Path, reference: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "SEND_TIMEOUT_MS", 800)
    with stage_ring(weights, 2) as ring:
        lost = Transport(ring.run_dir, "lost")
        for session in range(4):
            ring.gateway.open(session, max_tokens=400, reply_to=lost.endpoints)
        assert in_time(lambda: ring.open_sessions() == [4, 4])
        lost.close()
        begun = time.monotonic()
        assert ring.all_closed()
        assert time.monotonic() - begun < 1.6, "every session waited for itself"
        assert ring.generate(9, PROMPT, 4, GREEDY) == reference.generate(PROMPT, 4).tokens


def test_session_without_progress_is_closed(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "FOLLOWER_IDLE_S", 0.2)
    monkeypatch.setattr(stage_module, "CHECK_EVERY_S", 0.05)
    monkeypatch.setattr(stage_module, "IDLE_WAIT_MS", 20)
    with stage_ring(weights, 2) as ring:
        stranded = Gateway(ring.run_dir, best_endpoint(ring.instance.stages[1].endpoints), "stranded")
        stranded.open(1)  # on the second stage, to which no hidden states will come
        stranded.receive(1)
        failure = stranded.sessions[1].failure
        stranded.transport.close()
        assert failure is not None
        assert "made no progress" in failure.message
        assert ring.all_closed()


def test_stage_counts_what_it_did(weights: Path) -> None:
    with stage_ring(weights, 1) as ring:
        ring.generate(1, PROMPT, 5, GREEDY)
        assert ring.all_closed()
        counts = ring.stages[0].counts
        assert (counts.forwards, counts.rows) == (5, len(PROMPT) + 4)
        assert 0 < counts.busy_seconds < WITHIN_S


@pytest.mark.parametrize("count", [1, 2, 3])
def test_many_sessions_share_passes(weights: Path, reference: Ring, count: int) -> None:
    prompts = {session: [session, *PROMPT[session % 5 :]] for session in range(1, 9)}
    with stage_ring(weights, count) as ring:
        for session, prompt in prompts.items():
            ring.gateway.open(session, prompt, max_tokens=24)
        ring.gateway.receive(*prompts)
        for session, prompt in prompts.items():
            assert ring.gateway.sessions[session].log.tokens == reference.generate(prompt, 24).tokens
        for stage in ring.stages:
            decoding = stage.counts.forwards - len(prompts)
            assert decoding < 23 * len(prompts) / 1.5, "every token had a forward of its own"
            assert stage.dropped == {}
