"""A gateway without text, for timing: it opens sessions on an instance and records the time of every token."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bus.client import BusClient
from bus.dataplane.access import LOCAL, Access, best_endpoint
from bus.dataplane.frames import GATEWAY_STAGE, Flag, Frame, Payload
from bus.dataplane.transport import Transport
from bus.messages import InstanceEnsure, InstanceReady
from cluster.openings import Opening, SessionFailure
from cluster.placement import Instance
from cluster.sampling import SamplingParams
from common.config import NodeConfig

INSTANCE_TIMEOUT_S = 120.0
TOKEN_TIMEOUT_S = 30.0
LOOK_EVERY_MS = 1000


@dataclass(frozen=True, slots=True)
class Timed:
    """A token, when it came (monotonic nanoseconds) and the time of its step in engines (nanoseconds)."""

    token: int
    at_ns: int
    compute_ns: int


@dataclass(slots=True)
class StreamResult:
    """What came for one session: tokens; (sessions ahead, prompt tokens found stored) as often as reported; the end."""

    first_position: int
    opened_ns: int
    tokens: list[Timed] = field(default_factory=list)
    queue_positions: list[tuple[int, int]] = field(default_factory=list)
    passes: int = 0  # frames with tokens
    finished: bool = False
    failure: SessionFailure | None = None

    @property
    def ids(self) -> list[int]:
        """The tokens without their times."""
        return [timed.token for timed in self.tokens]


def ensure_instance(config: NodeConfig, model_id: str) -> Instance:
    """Request an instance of the model from the node."""

    async def request() -> Instance:
        bus = BusClient(config.run_path, config.node_id, f"bench-{secrets.token_hex(4)}")
        await bus.start()
        try:
            ready = await bus.request("node", InstanceEnsure(model_id), InstanceReady, INSTANCE_TIMEOUT_S)
            return ready.instance
        finally:
            await bus.close()

    return asyncio.run(request())


class Streams:
    """One thread's sessions on one instance."""

    def __init__(self, run_dir: Path, instance: Instance, access: Access = LOCAL) -> None:
        self._instance = instance
        self._transport = Transport(run_dir, f"bench-{secrets.token_hex(4)}", access)
        self._first = best_endpoint(instance.stages[0].endpoints)
        self._sessions: dict[int, StreamResult] = {}

    def generate(self, prompt: tuple[int, ...], tokens: int) -> list[Timed]:
        """Decode exactly `tokens` tokens, greedily. Raises AssertionError if a stage fails or no token comes."""
        (came,) = self.generate_side_by_side([prompt], tokens)
        return came

    def generate_side_by_side(self, prompts: Sequence[tuple[int, ...]], tokens: int) -> list[list[Timed]]:
        """Decode several sessions at a time. Returns their tokens in the order of their prompts."""
        sessions = [self.open(prompt, tokens) for prompt in prompts]
        came = [self.received(session) for session in sessions]
        self.receive(*came, tokens=tokens)
        for session in sessions:
            self.end(session)
        return [received.tokens for received in came]

    def open(self, prompt: Sequence[int], tokens: int, drafts: int = 0) -> int:
        """Open a greedy session of `tokens` tokens with at most so many drafts, and return its number."""
        session = secrets.randbits(63)
        sampling = SamplingParams(temperature=0.0)
        opening = Opening(tuple(prompt), len(prompt), tokens, frozenset(), sampling, self._transport.endpoints, drafts)
        self._sessions[session] = StreamResult(len(prompt), time.monotonic_ns())
        self._send(Flag.OPEN, session, msgspec.msgpack.encode(opening))
        return session

    def received(self, session: int) -> StreamResult:
        """Return what came so far; it grows while `receive_until` runs."""
        return self._sessions[session]

    def end(self, session: int) -> int:
        """Close a session, and return the time (monotonic nanoseconds)."""
        closed_ns = time.monotonic_ns()
        self._send(Flag.CLOSE, session, b"")
        self._sessions.pop(session, None)
        return closed_ns

    def end_all(self) -> None:
        """Close every session that is still open."""
        for session in list(self._sessions):
            self.end(session)

    def receive(self, *sessions: StreamResult, tokens: int = 1 << 62) -> None:
        """Receive frames until each of these has ended, or has as many tokens."""
        self.receive_until(lambda: all(received.finished or len(received.tokens) >= tokens for received in sessions))

    def receive_until(self, enough: Callable[[], bool], *, failures: bool = False) -> None:
        """Receive frames until it is enough.

        Raises AssertionError if nothing comes in time, or if a stage fails and `failures` is false.
        """
        deadline = time.monotonic() + TOKEN_TIMEOUT_S
        while not enough():
            if (came := self._transport.receive(LOOK_EVERY_MS)) is not None:
                frame, payload, _ = came
                self._take(frame, payload, failures)
                deadline = time.monotonic() + TOKEN_TIMEOUT_S
            assert time.monotonic() < deadline, f"nothing came for {TOKEN_TIMEOUT_S:g} s"

    def close(self) -> None:
        """Close the sockets."""
        self._transport.close()

    def _send(self, flag: int, session: int, payload: bytes) -> None:
        frame = Frame(flag, self._instance.epoch, session, stage=GATEWAY_STAGE)
        self._transport.send(self._first, frame, payload)

    def _take(self, frame: Frame, payload: Payload, failures: bool) -> None:
        received, now = self._sessions.get(frame.session), time.monotonic_ns()
        if received is None:
            return  # it was closed while this was under way
        if frame.flags & Flag.FAILED:
            received.failure = msgspec.msgpack.decode(payload.tobytes(), type=SessionFailure)
            assert failures, received.failure.message
        elif frame.flags & Flag.QUEUE_POSITION:
            received.queue_positions.append((int(payload[0]), int(payload[1])))
        else:
            assert frame.position == received.first_position + len(received.tokens), "a token was lost, or came twice"
            received.tokens += [Timed(int(token), now, frame.compute_ns) for token in payload]
            received.passes += 1
            received.finished = bool(frame.flags & Flag.FINISHED)
