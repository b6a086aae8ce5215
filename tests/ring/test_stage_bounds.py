"""`ring.stage`: frames of the right sender with the wrong contents end their own session at most."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.dataplane.access import best_endpoint
from bus.dataplane.frames import GATEWAY_STAGE, Flag, Frame, Payload
from bus.dataplane.transport import Transport
from cluster.openings import MAX_DRAFTS, Opening, SessionFailure
from cluster.sampling import SamplingParams
from cluster.shard import whole
from engines.numpy.engine import NumpyEngine
from ring import stage
from ring.frame_writer import Outgoing
from ring.loaded_shard import LoadedShard
from ring.prefix_cache import CacheUpdate
from ring.ring_view import RingView
from ring.scheduler import PROMPT_CHUNK
from ring.sessions import StageSession
from ring.stage_thread import join_ring
from tests.support.bus import in_time, run_folder
from tests.support.engines import Ring
from tests.support.models import TINY_VOCAB
from tests.support.ring.stage_ring import EPOCH, GREEDY, N_LAYERS, PROMPT, StageRing, stage_ring

WIDTH = 64
ROW = np.zeros((1, WIDTH), np.float32)
OPENING: dict[str, Any] = msgspec.to_builtins(
    Opening(tuple(PROMPT), len(PROMPT), 8, frozenset({2}), GREEDY, ("ipc:///a/gateway.ring",), 0)
)


def send_to_second(ring: StageRing, frame: Frame, payload: Payload) -> None:
    """Send to the second stage as a process of this user, which may send what the first stage may."""
    ring.gateway.transport.send(best_endpoint(ring.instance.stages[1].endpoints), frame, payload)


def at(position: int, flags: int = 0) -> Frame:
    return Frame(flags, EPOCH, 1, position)


def fails_alone(ring: StageRing, reference: Ring, sentence: str) -> None:
    """Check that session 1 fails in this sentence, and that the next one runs undisturbed."""
    assert sentence in ring.failure(1)
    assert ring.generate(2, PROMPT, 4, GREEDY) == reference.generate(PROMPT, 4).tokens
    assert ring.all_closed()


def stalled_session(ring: StageRing) -> StageSession:
    """Open session 1 on both stages; the second receives only what the test sends. Return the first stage's session."""
    first = ring.stages[0].stage
    send = first.send

    def only_openings(session: StageSession, outgoing: Outgoing) -> None:
        if session.id != 1 or outgoing[1].flags & Flag.OPEN:
            send(session, outgoing)

    first.send = only_openings  # type: ignore[method-assign]
    ring.gateway.open(1, max_tokens=400)
    assert in_time(lambda: ring.open_sessions() == [1, 1] and ring.stages[0].counts.forwards == 1)
    return first.sessions.by_id[1]


@pytest.mark.parametrize("rows", [1, 7, PROMPT_CHUNK])
def test_endless_chunk_fails_its_session(weights: Path, reference: Ring, rows: int) -> None:
    with stage_ring(weights, 2) as ring:
        stalled_session(ring)
        for part in range(PROMPT_CHUNK // rows + 1):
            send_to_second(ring, at(rows * part, Flag.MORE), np.zeros((rows, WIDTH), np.float32))
        fails_alone(ring, reference, f"more than {PROMPT_CHUNK} rows")
        assert not ring.stages[1].stage.queue._parts


@pytest.mark.parametrize(
    ("frame", "rows", "sentence"),
    [
        (at(0), np.zeros((PROMPT_CHUNK + 1, WIDTH), np.float32), f"more than {PROMPT_CHUNK} rows"),
        (at(0, Flag.MORE), np.zeros((0, WIDTH), np.float32), "no rows"),
        (at(0), np.zeros(WIDTH, np.float32), "no rows"),
        (at(2**32 - 1), ROW, "does not have"),
        (at(len(PROMPT) + 400 + MAX_DRAFTS), ROW, "does not have"),
        (at(0), np.zeros((1, WIDTH + 1), np.float32), f"(rows, {WIDTH})"),
        (at(0), np.zeros((1, WIDTH), np.int32), f"(rows, {WIDTH})"),
        (at(300, Flag.ROLLBACK), ROW, "300"),
        (at(300), ROW, "a frame was lost or repeated"),
    ],
)
def test_invalid_hidden_states_fail_their_session(
    weights: Path, reference: Ring, frame: Frame, rows: Payload, sentence: str
) -> None:
    with stage_ring(weights, 2) as ring:
        stalled_session(ring)
        send_to_second(ring, frame, rows)
        fails_alone(ring, reference, sentence)


def test_too_many_chunks_fail_their_session(weights: Path, reference: Ring) -> None:
    with stage_ring(weights, 2) as ring:
        stalled_session(ring)
        ring.stages[1].stage.input.next_prompts = list  # type: ignore[method-assign]  # the engine is slow
        for position in range(8):
            send_to_second(ring, at(position), ROW)
        assert "more chunks came than were due" in ring.failure(1)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of what it was given
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_non_finite_hidden_states_affect_their_session_only(weights: Path, reference: Ring, value: float) -> None:
    with stage_ring(weights, 2) as ring:
        frames = ring.stages[0].stage.frames
        honest = frames.hidden_states
        frames.hidden_states = lambda step, output, rest: honest(  # type: ignore[method-assign]
            step, np.full_like(output, value) if step.session.id == 1 else output, rest
        )
        ring.gateway.open(1, max_tokens=60)
        ring.gateway.open(3, PROMPT[::-1], max_tokens=60)
        ring.gateway.receive(1, 3)
        assert ring.gateway.sessions[3].log.tokens == reference.generate(PROMPT[::-1], 60).tokens
        assert ring.generate(2, PROMPT, 4, GREEDY) == reference.generate(PROMPT, 4).tokens
        failure = ring.gateway.sessions[1].failure
        assert ring.gateway.sessions[1].finished if failure is None else "not finite" in failure.message


@pytest.mark.parametrize(
    ("position", "tokens"),
    [
        (0, [7]),
        (len(PROMPT) - 1, [7]),
        (len(PROMPT) + 1, [7]),
        (2**32 - 1, [7]),
        (None, []),
        (None, [7] * (MAX_DRAFTS + 2)),
        (None, np.array([1.0], np.float32)),
    ],
)
def test_unexpected_token_fails_its_session(weights: Path, reference: Ring, position: int | None, tokens: Any) -> None:
    with stage_ring(weights, 2) as ring:
        stalled_session(ring)
        where = len(PROMPT) if position is None else position
        payload = tokens if isinstance(tokens, np.ndarray) else np.array(tokens, np.int32)
        ring.gateway.send(at(where, Flag.TOKEN), payload)
        assert "not due" in ring.failure(1)


@pytest.mark.parametrize("token", [TINY_VOCAB, 2**31 - 1, -1, -(2**31)])
def test_token_outside_the_vocabulary_fails_its_session(weights: Path, reference: Ring, token: int) -> None:
    with stage_ring(weights, 2) as ring:
        stalled_session(ring)
        ring.gateway.send(at(len(PROMPT), Flag.TOKEN), np.array([token], np.int32))
        assert "vocabulary" in ring.failure(1)


def test_computed_position_is_at_most_what_was_sent(weights: Path) -> None:
    with stage_ring(weights, 2) as ring:
        session = stalled_session(ring)
        ring.gateway.send(at(2**32 - 1, Flag.COMPUTED), np.empty(0, np.int32))
        assert in_time(lambda: session.computed == len(PROMPT))


@pytest.mark.parametrize(
    "field",
    [
        {"prompt": []},
        {"prompt": [-1, *PROMPT[1:]]},
        {"prompt": [2**31, *PROMPT[1:]]},
        {"prompt": [0.5, *PROMPT[1:]]},
        {"prompt": [1] * 300_000, "first_position": 300_000},
        {"first_position": len(PROMPT) + 1},
        {"first_position": 2**40},
        {"first_position": -1},
        {"max_tokens": 0},
        {"max_tokens": 2**31},
        {"eos": list(range(257))},
        {"eos": [-1]},
        {"reply_to": ["ipc:///a/b.ring"] * 9},
        {"reply_to": ["ipc:///" + "a" * 300]},
        {"reply_to": []},
        {"drafts": -1},
        {"drafts": 2**20},
        {"reuse": [-1]},
        {"reuse": list(range(200_000))},
        {"drop": ["0"]},
        {"sampling": {"temperature": float("nan")}},
        {"sampling": {"temperature": float("inf")}},
        {"sampling": {"temperature": -1.0}},
        {"sampling": {"top_p": float("nan")}},
        {"sampling": {"min_p": 2.0}},
        {"sampling": {"top_k": 2**40}},
        {"sampling": {"seed": 2**64 - 1, "top_k": -1}},
    ],
    ids=lambda field: str(field)[:60],
)
@pytest.mark.parametrize("target", [0, 1], ids=["first", "second"])
def test_opening_out_of_bounds_takes_no_slot(weights: Path, field: dict[str, Any], target: int) -> None:
    with stage_ring(weights, 2) as ring:
        opening = {**OPENING, "reply_to": ring.gateway.transport.endpoints, **field}
        payload = msgspec.msgpack.encode(opening)
        frame = Frame(Flag.OPEN, EPOCH, 1, stage=GATEWAY_STAGE)
        ring.gateway.transport.send(best_endpoint(ring.instance.stages[target].endpoints), frame, payload)
        assert in_time(lambda: ring.stages[target].dropped == {"opening": 1})
        assert ring.open_sessions() == [0, 0]


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_any_bytes_decode_or_raise_a_decode_error(payload: bytes) -> None:
    for kind in (Opening, CacheUpdate, SessionFailure, SamplingParams):
        with suppress(msgspec.DecodeError):
            msgspec.msgpack.decode(payload, type=kind)


def test_cache_update_out_of_bounds_is_counted(weights: Path) -> None:
    with stage_ring(weights, 2) as ring:
        stalled_session(ring)
        for update in ({"start": -1}, {"numbers": [-1]}, {"drop": list(range(200_000))}):
            send_to_second(ring, at(0, Flag.STORE), np.frombuffer(msgspec.msgpack.encode(update), np.uint8))
        send_to_second(ring, at(0, Flag.STORE), np.frombuffer(b"\x81\xa1x" + b"\x91" * 10_000, np.uint8))
        assert in_time(lambda: ring.stages[1].dropped == {"store": 4})


def test_stage_holds_no_more_sessions_than_slots(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "MAX_SLOTS", 3)
    with stage_ring(weights, 2) as ring:
        opening = msgspec.msgpack.encode({**OPENING, "reply_to": ring.gateway.transport.endpoints})
        for session in range(5):
            send_to_second(ring, Frame(Flag.OPEN, EPOCH, session), np.frombuffer(opening, np.uint8))
        assert in_time(lambda: ring.stages[1].dropped == {"opening": 2})
        assert ring.open_sessions() == [0, 3]


class Torrent(Transport):
    """A transport in which the next frame is always there."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()

    def connect(self, endpoint: str) -> None:
        pass

    def receive(self, milliseconds: int = 0) -> tuple[Frame, Payload, str]:
        return Frame(Flag.TOKEN, EPOCH + 1, 1), ROW, ""


def test_endless_frames_do_not_stop_a_turn(weights: Path) -> None:
    engine, torrent = NumpyEngine(), Torrent()
    engine.load(whole("tiny", N_LAYERS), weights)
    join_ring(LoadedShard(engine, EPOCH, torrent, 4096), RingView(0, ("n",), "", "", 4096)).turn()
    assert torrent.dropped == {"another epoch": stage.FRAMES_A_TURN}


def test_ipc_reply_needs_a_run_folder(weights: Path) -> None:
    with run_folder() as folder, stage_ring(weights, 1) as ring:
        (folder / "any.socket").touch()
        ring.gateway.open(1, reply_to=(f"ipc://{folder}/any.socket",))
        assert in_time(lambda: ring.stages[0].dropped == {"opening": 1})
