"""A gateway without text, for timing: opens sessions on an instance and stamps every token that comes back."""

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

PLACE_WITHIN_S = 120.0
TOKEN_WITHIN_S = 30.0
LOOK_EVERY_MS = 1000


@dataclass(frozen=True, slots=True)
class Timed:
    """A token, when it came (monotonic nanoseconds) and what its step cost in engines (nanoseconds)."""

    token: int
    at_ns: int
    compute_ns: int


@dataclass(slots=True)
class Heard:
    """What came for one session: tokens; (sessions ahead, prompt tokens found stored) as often as told; the end."""

    first_position: int
    opened_ns: int
    tokens: list[Timed] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    passes: int = 0  # frames with tokens
    finished: bool = False
    failure: SessionFailure | None = None

    @property
    def ids(self) -> list[int]:
        """The tokens without their times."""
        return [timed.token for timed in self.tokens]


def place(config: NodeConfig, model_id: str) -> Instance:
    """Have an instance of the model."""

    async def ask() -> Instance:
        bus = BusClient(config.run_path, config.node_id, f"bench-{secrets.token_hex(4)}")
        await bus.start()
        try:
            ready = await bus.request("node", InstanceEnsure(model_id), InstanceReady, PLACE_WITHIN_S)
            return ready.instance
        finally:
            await bus.close()

    return asyncio.run(ask())


class Streams:
    """One thread's sessions on one instance."""

    def __init__(self, run_dir: Path, instance: Instance, access: Access = LOCAL) -> None:
        self._instance = instance
        self._transport = Transport(run_dir, f"bench-{secrets.token_hex(4)}", access)
        self._first = best_endpoint(instance.stages[0].endpoints)
        self._heard: dict[int, Heard] = {}

    def generate(self, prompt: tuple[int, ...], tokens: int) -> list[Timed]:
        """Greedy decoding of exactly `tokens` tokens. Raises AssertionError where a stage fails or none comes."""
        (came,) = self.generate_side_by_side([prompt], tokens)
        return came

    def generate_side_by_side(self, prompts: Sequence[tuple[int, ...]], tokens: int) -> list[list[Timed]]:
        """The same for several sessions at a time, in the order of their prompts."""
        sessions = [self.open(prompt, tokens) for prompt in prompts]
        came = [self.heard(session) for session in sessions]
        self.hear(*came, tokens=tokens)
        for session in sessions:
            self.end(session)
        return [heard.tokens for heard in came]

    def open(self, prompt: Sequence[int], tokens: int, drafts: int = 0) -> int:
        """Ask for `tokens` tokens, greedy, with so many guessed ahead at most; the session's number."""
        session = secrets.randbits(63)
        sampling = SamplingParams(temperature=0.0)
        opening = Opening(tuple(prompt), len(prompt), tokens, frozenset(), sampling, self._transport.endpoints, drafts)
        self._heard[session] = Heard(len(prompt), time.monotonic_ns())
        self._send(Flag.OPEN, session, msgspec.msgpack.encode(opening))
        return session

    def heard(self, session: int) -> Heard:
        """What came so far; it grows while `hear_until` runs."""
        return self._heard[session]

    def end(self, session: int) -> int:
        """Close a session, and say when (monotonic nanoseconds)."""
        closed_ns = time.monotonic_ns()
        self._send(Flag.CLOSE, session, b"")
        self._heard.pop(session, None)
        return closed_ns

    def end_all(self) -> None:
        """Close every session that is still open."""
        for session in list(self._heard):
            self.end(session)

    def hear(self, *sessions: Heard, tokens: int = 1 << 62) -> None:
        """Take in frames until each of these has ended, or has as many tokens."""
        self.hear_until(lambda: all(heard.finished or len(heard.tokens) >= tokens for heard in sessions))

    def hear_until(self, enough: Callable[[], bool], *, failures: bool = False) -> None:
        """Take in frames until it is enough. AssertionError when nothing comes, or a stage fails and none shall."""
        deadline = time.monotonic() + TOKEN_WITHIN_S
        while not enough():
            if (received := self._transport.receive(LOOK_EVERY_MS)) is not None:
                frame, payload, _ = received
                self._take(frame, payload, failures)
                deadline = time.monotonic() + TOKEN_WITHIN_S
            assert time.monotonic() < deadline, f"nothing came for {TOKEN_WITHIN_S:g} s"

    def close(self) -> None:
        """Close the sockets."""
        self._transport.close()

    def _send(self, flag: int, session: int, payload: bytes) -> None:
        frame = Frame(flag, self._instance.epoch, session, stage=GATEWAY_STAGE)
        self._transport.send(self._first, frame, payload)

    def _take(self, frame: Frame, payload: Payload, failures: bool) -> None:
        heard, now = self._heard.get(frame.session), time.monotonic_ns()
        if heard is None:
            return  # it was closed while this was under way
        if frame.flags & Flag.FAILED:
            heard.failure = msgspec.msgpack.decode(payload.tobytes(), type=SessionFailure)
            assert failures, heard.failure.message
        elif frame.flags & Flag.QUEUE_POSITION:
            heard.places.append((int(payload[0]), int(payload[1])))
        else:
            assert frame.position == heard.first_position + len(heard.tokens), "a token was lost, or came twice"
            heard.tokens += [Timed(int(token), now, frame.compute_ns) for token in payload]
            heard.passes += 1
            heard.finished = bool(frame.flags & Flag.FINISHED)
