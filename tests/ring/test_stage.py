"""Stages on their threads, joined over the real data plane, against the same model in one piece."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bus.dataplane import transport as data_plane
from bus.dataplane.access import LOCAL, Access, ClusterAccess, best_endpoint
from bus.dataplane.frames import GATEWAY_STAGE, Flag, Frame
from bus.dataplane.transport import Transport
from cluster.openings import Opening, SessionFailure
from cluster.placement import Instance, PlacedStage
from cluster.sampling import SamplingParams
from cluster.shard import Shard, whole
from engines.numpy.engine import NumpyEngine
from gateway.core.token_log import TokenLog
from ring import relay
from ring import stage as stage_module
from ring.loaded_shard import LoadedShard, load_shard
from ring.ring_view import ring_view
from ring.scheduler import PROMPT_CHUNK
from ring.stage_thread import StageThread
from tests.support import engines as rig_engines
from tests.support.access import only_tcp
from tests.support.bus import WITHIN_S, in_time, run_folder
from tests.support.models import TINY_VOCAB, write_tiny_llama

EPOCH = 5
N_LAYERS = 4
GREEDY = SamplingParams(temperature=0.0)
SAMPLED = SamplingParams(temperature=0.8, seed=7)
PROMPT = [5, 250, 17, 99, 3, 3, 120, 64, 200, 31, 7]
CUTS: dict[int, tuple[int, ...]] = {1: (0, 4), 2: (0, 3, 4), 3: (0, 1, 3, 4)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"), n_layers=N_LAYERS)


@pytest.fixture(scope="module")
def reference(weights: Path) -> rig_engines.Ring:
    engine = NumpyEngine()
    engine.load(whole("tiny", N_LAYERS), weights)
    return rig_engines.Ring([engine])


@dataclass
class Heard:
    """What came for one session."""

    log: TokenLog = field(default_factory=TokenLog)
    finished: bool = False
    failure: SessionFailure | None = None
    first_position: int = 0
    passes: int = 0
    places: list[tuple[int, int]] = field(default_factory=list)


class Gateway:
    """Opens sessions on the first stage and hears their tokens, on the test's own thread."""

    def __init__(self, run_dir: Path, first: str, name: str = "gateway", access: Access = LOCAL) -> None:
        self.transport = Transport(run_dir, name, access)
        self.sessions: dict[int, Heard] = {}
        self._first = first

    def open(
        self,
        session: int,
        prompt: Sequence[int] = PROMPT,
        max_tokens: int = 16,
        sampling: SamplingParams = GREEDY,
        epoch: int = EPOCH,
        reply_to: tuple[str, ...] = (),
        drafts: int = 0,
    ) -> None:
        eos: frozenset[int] = frozenset()
        reply_endpoint = reply_to or self.transport.endpoints
        opening = Opening(tuple(prompt), len(prompt), max_tokens, eos, sampling, reply_endpoint, drafts)
        self.sessions[session] = Heard(first_position=len(prompt))
        frame = Frame(Flag.OPEN, epoch, session, stage=GATEWAY_STAGE)
        self.transport.send(self._first, frame, msgspec.msgpack.encode(opening))

    def close(self, session: int) -> None:
        self.transport.send(self._first, Frame(Flag.CLOSE, EPOCH, session, stage=GATEWAY_STAGE), b"")

    def send(self, frame: Frame, payload: np.ndarray | bytes) -> None:
        self.transport.send(self._first, frame, payload)

    def hear(self, *sessions: int, tokens: int = 10**9) -> None:
        """Take in frames until all these sessions have ended, or have as many tokens."""
        deadline = time.monotonic() + WITHIN_S
        while not all(self._over(session, tokens) for session in sessions):
            assert time.monotonic() < deadline, f"still waiting: {self.sessions}"
            if (received := self.transport.receive(50)) is not None:
                self._take(received[0], received[1])

    def _over(self, session: int, tokens: int) -> bool:
        heard = self.sessions[session]
        return heard.finished or heard.failure is not None or len(heard.log.tokens) >= tokens

    def _take(self, frame: Frame, payload: np.ndarray) -> None:
        heard = self.sessions[frame.session]
        assert frame.epoch == EPOCH
        if frame.flags & Flag.FAILED:
            heard.failure = msgspec.msgpack.decode(payload.tobytes(), type=SessionFailure)
            return
        if frame.flags & Flag.QUEUE_POSITION:
            heard.places.append((int(payload[0]), int(payload[1])))
            return
        assert not heard.finished, "a token after the end"
        heard.passes += 1
        for at, token in enumerate(payload.tolist()):
            assert heard.log.accept(frame.position + at - heard.first_position, token)
        heard.finished = bool(frame.flags & Flag.FINISHED)


@dataclass
class Rig:
    """A ring of stages and a gateway at it."""

    stages: list[StageThread]
    gateway: Gateway
    instance: Instance
    run_dir: Path

    def generate(
        self, session: int, prompt: Sequence[int], count: int, sampling: SamplingParams, drafts: int = 0
    ) -> list[int]:
        self.gateway.open(session, prompt, count, sampling, drafts=drafts)
        self.gateway.hear(session)
        self.gateway.close(session)
        return self.gateway.sessions[session].log.tokens

    def failure(self, session: int) -> str:
        """The sentence with which the session ends."""
        self.gateway.hear(session)
        failure = self.gateway.sessions[session].failure
        assert failure is not None, "the session did not fail"
        return failure.message

    def open_sessions(self) -> list[int]:
        return [stage.counts.sessions for stage in self.stages]

    def all_closed(self) -> bool:
        return in_time(lambda: not any(self.open_sessions()))


@contextmanager
def rig(weights: Path, count: int, positions: int = 4096, nodes: Sequence[ClusterAccess] = ()) -> Iterator[Rig]:
    """Run stages on one machine; or, with `nodes`, each on a node of its own and the gateway on the last of these."""
    with run_folder() as run_dir:
        shards = [Shard("tiny", a, b, N_LAYERS) for a, b in zip(CUTS[count], CUTS[count][1:], strict=False)]
        stages = [
            started(shard, weights, run_dir, index, nodes[index] if nodes else LOCAL)
            for index, shard in enumerate(shards)
        ]
        instance = Instance("i", "tiny", EPOCH, tuple(placed(stages, shards, positions, nodes)))
        for index, stage in enumerate(stages):
            stage.join_ring(ring_view(instance, f"n/stage-{index}")).result(WITHIN_S)
        first = best_endpoint(instance.stages[0].endpoints)
        gateway = Gateway(run_dir, first, access=nodes[-1] if nodes else LOCAL)
        try:
            yield Rig(stages, gateway, instance, run_dir)
        finally:
            gateway.transport.close()
            for stage in stages:
                stage.finish().result(WITHIN_S)
                stage.join(WITHIN_S)
                assert not stage.is_alive()


def placed(
    stages: Sequence[StageThread], shards: Sequence[Shard], positions: int, nodes: Sequence[ClusterAccess]
) -> Iterator[PlacedStage]:
    """The stages as their placer knows them."""
    for index, (stage, shard) in enumerate(zip(stages, shards, strict=True)):
        loaded = stage.loaded.result(WITHIN_S)
        node_id, endpoints = "n", loaded.endpoints
        if nodes:
            node_id, endpoints = nodes[index].own_id, only_tcp(endpoints)
        yield PlacedStage(node_id, shard, f"n/stage-{index}", "numpy", endpoints, positions, loaded.exact_rows)


def started(shard: Shard, weights: Path, run_dir: Path, index: int, access: Access = LOCAL) -> StageThread:
    def load() -> LoadedShard:
        transport = lambda: Transport(run_dir, f"stage-{index}", access)  # noqa: E731
        return load_shard("numpy", shard, EPOCH, weights, transport, kv_bytes=1 << 24)

    stage = StageThread(load)
    stage.start()
    return stage


@pytest.mark.parametrize("count", CUTS)
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_ring_of_any_size_gives_the_tokens_of_the_whole_model(
    weights: Path, reference: rig_engines.Ring, count: int, sampling: SamplingParams
) -> None:
    expected = reference.generate(PROMPT, 24, sampling).tokens
    with rig(weights, count) as ring:
        assert ring.generate(1, PROMPT, 24, sampling) == expected
        assert ring.all_closed()
        assert not any(stage.dropped for stage in ring.stages)


@pytest.mark.parametrize("count", CUTS)
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("drafts", [0, 4])
def test_replay_continues_with_the_same_tokens(
    weights: Path, reference: rig_engines.Ring, count: int, sampling: SamplingParams, drafts: int
) -> None:
    total = 40
    expected = reference.generate(PROMPT, total, sampling).tokens
    with rig(weights, count) as ring:
        for session, done in enumerate((1, 7, 21, total - 1)):
            prompt = [*PROMPT, *expected[:done]]
            assert ring.generate(session, prompt, total - done, sampling, drafts) == expected[done:]
            heard = ring.gateway.sessions[session]
            assert (heard.first_position, heard.finished) == (len(PROMPT) + done, True)


def test_replay_elsewhere_takes_over_a_running_session(weights: Path, reference: rig_engines.Ring) -> None:
    expected = reference.generate(PROMPT, 60, SAMPLED).tokens
    with rig(weights, 2) as first, rig(weights, 3) as second:
        first.gateway.open(1, PROMPT, 60, SAMPLED)
        first.gateway.hear(1, tokens=20)
        first.gateway.close(1)
        done = first.gateway.sessions[1].log.tokens
        assert 20 <= len(done) < 60, "the session has ended, so there is nothing to take over"
        assert done + second.generate(2, [*PROMPT, *done], 60 - len(done), SAMPLED) == expected


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("length", [1, PROMPT_CHUNK, PROMPT_CHUNK + 1, 2 * PROMPT_CHUNK + 40])
def test_a_prompt_of_any_length_is_read_in_chunks(
    weights: Path, reference: rig_engines.Ring, count: int, length: int
) -> None:
    prompt = np.random.default_rng(length).integers(3, TINY_VOCAB, length).tolist()
    with rig(weights, count) as ring:
        assert ring.generate(1, prompt, 4, GREEDY) == reference.generate(prompt, 4).tokens
        assert ring.stages[-1].counts.forwards == -(-length // PROMPT_CHUNK) + 3


@pytest.mark.parametrize("count", CUTS)
def test_sessions_that_run_side_by_side_do_not_disturb_each_other(
    weights: Path, reference: rig_engines.Ring, count: int
) -> None:
    prompts = [PROMPT, PROMPT[::-1], [9] * (PROMPT_CHUNK + 20)]
    with rig(weights, count) as ring:
        for session, prompt in enumerate(prompts):
            ring.gateway.open(session, prompt, 12, SAMPLED)
        ring.gateway.hear(0, 1, 2)
        for session, prompt in enumerate(prompts):
            expected = reference.generate(prompt, 12, SAMPLED).tokens
            assert ring.gateway.sessions[session].log.tokens == expected


def test_a_close_in_the_midst_frees_the_slots_of_all_stages(weights: Path, reference: rig_engines.Ring) -> None:
    with rig(weights, 3) as ring:
        for session in range(20):
            ring.gateway.open(session, max_tokens=400)
            ring.gateway.hear(session, tokens=2)
            ring.gateway.close(session)
        assert ring.all_closed()
        for stage in ring.stages:
            assert stage.stage.sessions._next_slot <= 3, "slots are not used again"
        assert ring.generate(99, PROMPT, 8, GREEDY) == reference.generate(PROMPT, 8).tokens


def test_another_epoch_is_refused_and_counted(weights: Path) -> None:
    with rig(weights, 2) as ring:
        ring.gateway.open(1, epoch=EPOCH - 1)
        ring.gateway.open(2, epoch=EPOCH + 1)
        assert in_time(lambda: ring.stages[0].dropped.get("another epoch") == 2)
        assert ring.open_sessions() == [0, 0]


def test_frames_of_an_unknown_session_are_counted_and_a_close_is_not(weights: Path) -> None:
    with rig(weights, 2) as ring:
        ring.gateway.close(404)
        ring.gateway.send(Frame(Flag.TOKEN, EPOCH, 404), np.array([1], np.int32))
        assert in_time(lambda: ring.stages[0].dropped == {"no such session": 1})


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", msgspec.msgpack.encode({"prompt": "text"}), b"\x81\xa1x" + b"\x91" * 10_000],
    ids=["empty", "damaged", "of a wrong type", "nested deeply"],
)
def test_an_opening_that_does_not_parse_is_counted(weights: Path, payload: bytes) -> None:
    with rig(weights, 1) as ring:
        ring.gateway.send(Frame(Flag.OPEN, EPOCH, 1), payload)
        assert in_time(lambda: ring.stages[0].dropped == {"opening": 1})


@pytest.mark.parametrize("reply_to", [("nonsense",), ("ipc:///no/such/file",)])
def test_an_opening_without_a_way_back_takes_no_slot(
    weights: Path, reference: rig_engines.Ring, reply_to: tuple[str, ...]
) -> None:
    with rig(weights, 1) as ring:
        ring.gateway.open(1, reply_to=reply_to)
        assert in_time(lambda: ring.stages[0].dropped == {"opening": 1})
        assert ring.open_sessions() == [0]
        assert ring.generate(2, PROMPT, 4, GREEDY) == reference.generate(PROMPT, 4).tokens


def test_opening_a_session_twice_disturbs_nothing(weights: Path, reference: rig_engines.Ring) -> None:
    with rig(weights, 2) as ring:
        ring.gateway.open(1, max_tokens=8)
        ring.gateway.open(1, max_tokens=8)
        ring.gateway.hear(1)
        assert ring.gateway.sessions[1].log.tokens == reference.generate(PROMPT, 8).tokens
        assert ring.stages[0].dropped == {"opening": 1}


def test_a_token_that_the_model_does_not_have_fails_its_session_only(
    weights: Path, reference: rig_engines.Ring
) -> None:
    with rig(weights, 2) as ring:
        ring.gateway.open(1, [5, TINY_VOCAB + 7])
        assert "vocabulary" in ring.failure(1)
        assert ring.all_closed()
        assert ring.generate(2, PROMPT, 4, GREEDY) == reference.generate(PROMPT, 4).tokens


def test_a_context_that_is_full_fails_its_session_in_a_sentence(weights: Path) -> None:
    with rig(weights, 2) as ring:
        ring.gateway.open(1, [5] * 500, max_tokens=100)
        assert "512" in ring.failure(1)
        assert ring.all_closed()


def test_parts_that_do_not_fit_together_fail_their_session_only(weights: Path, reference: rig_engines.Ring) -> None:
    with rig(weights, 2) as ring:
        ring.gateway.open(1, max_tokens=400)
        ring.gateway.hear(1, tokens=1)
        second = best_endpoint(ring.instance.stages[1].endpoints)
        ring.gateway.transport.send(second, Frame(Flag.MORE, EPOCH, 1), np.zeros((2, 3), np.float32))
        ring.gateway.transport.send(second, Frame(0, EPOCH, 1), np.zeros((2, 4), np.float32))
        assert "do not fit together" in ring.failure(1)
        assert ring.generate(2, PROMPT, 4, GREEDY) == reference.generate(PROMPT, 4).tokens


def test_logits_that_are_no_numbers_fail_their_session_only(
    weights: Path, reference: rig_engines.Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rig(weights, 1) as ring:
        forward = NumpyEngine.forward
        monkeypatch.setattr(NumpyEngine, "forward", lambda *a: [out * np.float32("nan") for out in forward(*a)])
        ring.gateway.open(1)
        assert "not finite" in ring.failure(1)
        monkeypatch.undo()
        assert ring.generate(2, PROMPT, 4, GREEDY) == reference.generate(PROMPT, 4).tokens


def test_a_lost_gateway_frees_its_sessions_and_costs_the_others_one_deadline(
    weights: Path, reference: rig_engines.Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_plane, "SEND_WITHIN_MS", 800)
    with rig(weights, 2) as ring:
        lost = Transport(ring.run_dir, "lost")
        for session in range(4):
            ring.gateway.open(session, max_tokens=400, reply_to=lost.endpoints)
        assert in_time(lambda: ring.open_sessions() == [4, 4])
        lost.close()
        begun = time.monotonic()
        assert ring.all_closed()
        assert time.monotonic() - begun < 1.6, "every session waited for itself"
        assert ring.generate(9, PROMPT, 4, GREEDY) == reference.generate(PROMPT, 4).tokens


def test_a_drain_ends_with_the_last_session_and_takes_no_new_ones(weights: Path) -> None:
    with rig(weights, 2) as ring:
        ring.gateway.open(1, max_tokens=400)
        ring.gateway.hear(1, tokens=1)
        drained: list[Future[None]] = [stage.drain() for stage in ring.stages]
        ring.stages[0]._call(lambda: None).result(WITHIN_S)  # commands are carried out in order: the drain has begun
        ring.gateway.hear(1, tokens=3)
        ring.gateway.open(2)
        assert "this instance is being replaced" in ring.failure(2)
        assert not any(future.done() for future in drained)
        ring.gateway.close(1)
        for future in drained:
            future.result(WITHIN_S)


def test_a_drain_of_an_idle_stage_is_done_at_once(weights: Path) -> None:
    with rig(weights, 1) as ring:
        ring.stages[0].drain().result(WITHIN_S)


def test_a_session_of_which_nothing_was_heard_is_closed(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "FOLLOWER_IDLE_S", 0.2)
    monkeypatch.setattr(stage_module, "REAP_EVERY_S", 0.05)
    monkeypatch.setattr(stage_module, "IDLE_WAIT_MS", 20)
    with rig(weights, 2) as ring:
        stranded = Gateway(ring.run_dir, best_endpoint(ring.instance.stages[1].endpoints), "stranded")
        stranded.open(1)  # on the second stage, to which no hidden states will come
        stranded.hear(1)
        failure = stranded.sessions[1].failure
        stranded.transport.close()
        assert failure is not None
        assert "made no progress" in failure.message
        assert ring.all_closed()


def test_weights_that_cannot_be_read_are_the_loads_failure(tmp_path: Path) -> None:
    stage = started(Shard("tiny", 0, 1, N_LAYERS), tmp_path / "nothing", tmp_path, 0)
    with pytest.raises(Exception, match="nothing"):
        stage.loaded.result(WITHIN_S)
    stage.join(WITHIN_S)


def test_a_stage_counts_what_it_did(weights: Path) -> None:
    with rig(weights, 1) as ring:
        ring.generate(1, PROMPT, 5, GREEDY)
        assert ring.all_closed()
        counts = ring.stages[0].counts
        assert (counts.forwards, counts.rows) == (5, len(PROMPT) + 4)
        assert 0 < counts.busy_seconds < WITHIN_S


def test_a_stranger_has_no_place_in_a_ring(weights: Path) -> None:
    with rig(weights, 2) as ring:
        view = ring_view(ring.instance, "n/stage-1")
        assert (view.index, view.next_endpoint) == (1, view.first_endpoint)
        with pytest.raises(StopIteration):
            ring_view(ring.instance, "n/stage-9")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_many_sessions_share_forwards_and_each_gets_its_own_tokens(
    weights: Path, reference: rig_engines.Ring, count: int
) -> None:
    prompts = {session: [session, *PROMPT[session % 5 :]] for session in range(1, 9)}
    with rig(weights, count) as ring:
        for session, prompt in prompts.items():
            ring.gateway.open(session, prompt, max_tokens=24)
        ring.gateway.hear(*prompts)
        for session, prompt in prompts.items():
            assert ring.gateway.sessions[session].log.tokens == reference.generate(prompt, 24).tokens
        for stage in ring.stages:
            decoding = stage.counts.forwards - len(prompts)
            assert decoding < 23 * len(prompts) / 1.5, "every token had a forward of its own"
            assert stage.dropped == {}
