"""Rings of real stages on threads, and a gateway without text that opens sessions on them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from bus.dataplane.access import LOCAL, Access, ClusterAccess, best_endpoint
from bus.dataplane.frames import GATEWAY_STAGE, Flag, Frame
from bus.dataplane.transport import Transport
from cluster.openings import Opening, SessionFailure
from cluster.placement import Instance, PlacedStage
from cluster.sampling import SamplingParams
from cluster.shard import Shard
from gateway.core.token_log import TokenLog
from ring.loaded_shard import LoadedShard, load_shard
from ring.ring_view import ring_view
from ring.stage_thread import StageThread
from tests.support.bus import WITHIN_S, in_time, run_folder
from tests.support.models import TINY_VOCAB
from tests.support.network.dataplane import only_tcp

EPOCH = 5
N_LAYERS = 4
GREEDY = SamplingParams(temperature=0.0)
SAMPLED = SamplingParams(temperature=0.8, seed=7)
PROMPT = [5, 250, 17, 99, 3, 3, 120, 64, 200, 31, 7]
CUTS: dict[int, tuple[int, ...]] = {1: (0, 4), 2: (0, 3, 4), 3: (0, 1, 3, 4)}


@dataclass
class SessionResult:
    """What the gateway received for one session."""

    log: TokenLog = field(default_factory=TokenLog)
    finished: bool = False
    failure: SessionFailure | None = None
    first_position: int = 0
    passes: int = 0
    queue_positions: list[tuple[int, int]] = field(default_factory=list)


class Gateway:
    """Opens sessions on the first stage and receives their tokens, on the test's own thread."""

    def __init__(self, run_dir: Path, first: str, name: str = "gateway", access: Access = LOCAL) -> None:
        self.transport = Transport(run_dir, name, access)
        self.sessions: dict[int, SessionResult] = {}
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
        vocabulary: int = 0,
    ) -> None:
        eos: frozenset[int] = frozenset()
        reply_endpoint = reply_to or self.transport.endpoints
        opening = Opening(
            tuple(prompt), len(prompt), max_tokens, eos, sampling, reply_endpoint, drafts, vocabulary=vocabulary
        )
        self.sessions[session] = SessionResult(first_position=len(prompt))
        frame = Frame(Flag.OPEN, epoch, session, stage=GATEWAY_STAGE)
        self.transport.send(self._first, frame, msgspec.msgpack.encode(opening))

    def close(self, session: int) -> None:
        self.transport.send(self._first, Frame(Flag.CLOSE, EPOCH, session, stage=GATEWAY_STAGE), b"")

    def send(self, frame: Frame, payload: np.ndarray | bytes) -> None:
        self.transport.send(self._first, frame, payload)

    def receive(self, *sessions: int, tokens: int = 10**9) -> None:
        """Receive frames until all these sessions have ended, or have as many tokens."""
        deadline = time.monotonic() + WITHIN_S
        while not all(self._over(session, tokens) for session in sessions):
            assert time.monotonic() < deadline, f"still waiting: {self.sessions}"
            if (came := self.transport.receive(50)) is not None:
                self._take(came[0], came[1])

    def _over(self, session: int, tokens: int) -> bool:
        received = self.sessions[session]
        return received.finished or received.failure is not None or len(received.log.tokens) >= tokens

    def _take(self, frame: Frame, payload: np.ndarray) -> None:
        received = self.sessions[frame.session]
        assert frame.epoch == EPOCH
        if frame.flags & Flag.FAILED:
            received.failure = msgspec.msgpack.decode(payload.tobytes(), type=SessionFailure)
            return
        if frame.flags & Flag.QUEUE_POSITION:
            received.queue_positions.append((int(payload[0]), int(payload[1])))
            return
        assert not received.finished, "a token after the end"
        received.passes += 1
        for at, token in enumerate(payload.tolist()):
            assert received.log.accept(frame.position + at - received.first_position, token)
        received.finished = bool(frame.flags & Flag.FINISHED)


@dataclass
class StageRing:
    """A ring of stages, and a gateway."""

    stages: list[StageThread]
    gateway: Gateway
    instance: Instance
    run_dir: Path

    def generate(
        self,
        session: int,
        prompt: Sequence[int],
        count: int,
        sampling: SamplingParams,
        drafts: int = 0,
        vocabulary: int = 0,
    ) -> list[int]:
        self.gateway.open(session, prompt, count, sampling, drafts=drafts, vocabulary=vocabulary)
        self.gateway.receive(session)
        self.gateway.close(session)
        return self.gateway.sessions[session].log.tokens

    def failure(self, session: int) -> str:
        """Return the sentence with which the session fails."""
        self.gateway.receive(session)
        failure = self.gateway.sessions[session].failure
        assert failure is not None, "the session did not fail"
        return failure.message

    def open_sessions(self) -> list[int]:
        return [stage.counts.sessions for stage in self.stages]

    def all_closed(self) -> bool:
        return in_time(lambda: not any(self.open_sessions()))


def random_prompt(length: int, seed: int = 1) -> list[int]:
    """Return a prompt that is the same for the same seed."""
    return [int(token) for token in np.random.default_rng(seed).integers(3, TINY_VOCAB, length)]


@contextmanager
def stage_ring(
    weights: Path,
    count: int,
    positions: int = 4096,
    nodes: Sequence[ClusterAccess] = (),
    engine: str = "numpy",
    precision: str = "fast",
) -> Iterator[StageRing]:
    """Run stages on one machine; or, with `nodes`, each on a node of its own, and the gateway on the last of these."""
    with run_folder() as run_dir:
        shards = [Shard("tiny", a, b, N_LAYERS) for a, b in zip(CUTS[count], CUTS[count][1:], strict=False)]
        stages = [
            started(shard, weights, run_dir, index, nodes[index] if nodes else LOCAL, engine, precision)
            for index, shard in enumerate(shards)
        ]
        instance = Instance("i", "tiny", EPOCH, tuple(placed(stages, shards, positions, nodes)))
        for index, stage in enumerate(stages):
            stage.join_ring(ring_view(instance, f"n/stage-{index}")).result(WITHIN_S)
        first = best_endpoint(instance.stages[0].endpoints)
        gateway = Gateway(run_dir, first, access=nodes[-1] if nodes else LOCAL)
        try:
            yield StageRing(stages, gateway, instance, run_dir)
        finally:
            gateway.transport.close()
            for stage in stages:
                stage.finish().result(WITHIN_S)
                stage.join(WITHIN_S)
                assert not stage.is_alive()


def placed(
    stages: Sequence[StageThread], shards: Sequence[Shard], positions: int, nodes: Sequence[ClusterAccess]
) -> Iterator[PlacedStage]:
    """Yield the stages as their placer knows them."""
    for index, (stage, shard) in enumerate(zip(stages, shards, strict=True)):
        loaded = stage.loaded.result(WITHIN_S)
        node_id, endpoints = "n", loaded.endpoints
        if nodes:
            node_id, endpoints = nodes[index].own_id, only_tcp(endpoints)
        sizes = positions, loaded.exact_rows, loaded.saves
        yield PlacedStage(node_id, shard, f"n/stage-{index}", "numpy", endpoints, *sizes)


def started(
    shard: Shard,
    weights: Path,
    run_dir: Path,
    index: int,
    access: Access = LOCAL,
    engine: str = "numpy",
    precision: str = "fast",
) -> StageThread:
    def load() -> LoadedShard:
        transport = lambda: Transport(run_dir, f"stage-{index}", access)  # noqa: E731
        return load_shard(engine, shard, EPOCH, weights, transport, kv_bytes=1 << 24, precision=precision)

    stage = StageThread(load)
    stage.start()
    return stage
