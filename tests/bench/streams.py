"""A gateway without text, for timing: opens sessions on a node's instance and stamps every token that comes back."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bus.client import BusClient
from bus.config import NodeConfig, read_config
from bus.frame import GATEWAY_STAGE, Flag, Frame
from bus.messages import InstanceEnsure, InstanceReady
from bus.ring import Ring, best_endpoint
from cluster.placement import Instance
from cluster.sampling import SamplingParams
from cluster.sessions import Opening

PLACE_WITHIN_S = 120.0
TOKEN_WITHIN_MS = 30_000


@dataclass(frozen=True, slots=True)
class Timed:
    """A token, when it came (monotonic nanoseconds) and what its step cost in engines (nanoseconds)."""

    token: int
    at_ns: int
    compute_ns: int


def node_config(data_dir: Path) -> NodeConfig:
    """The settings of a running node."""
    return read_config(Path((data_dir / "run").read_text()))


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

    def __init__(self, config: NodeConfig, instance: Instance) -> None:
        self._instance = instance
        self._ring = Ring(config.run_path, f"bench-{secrets.token_hex(4)}", "127.0.0.1")
        self._first = best_endpoint(instance.stages[0].endpoints)

    def generate(self, prompt: tuple[int, ...], tokens: int) -> list[Timed]:
        """Greedy decoding of exactly `tokens` tokens. Raises AssertionError where a stage fails or none comes."""
        (came,) = self.generate_side_by_side([prompt], tokens)
        return came

    def generate_side_by_side(self, prompts: Sequence[tuple[int, ...]], tokens: int) -> list[list[Timed]]:
        """The same for several sessions at a time, in the order of their prompts."""
        came: dict[int, list[Timed]] = {self._open(prompt, tokens): [] for prompt in prompts}
        for _ in range(tokens * len(prompts)):
            session, token = self._next()
            came[session].append(token)
        for session in came:
            self._send(Flag.CLOSE, session, b"")
        return list(came.values())

    def close(self) -> None:
        """Close the sockets."""
        self._ring.close()

    def _send(self, flag: int, session: int, payload: bytes) -> None:
        frame = Frame(flag, self._instance.epoch, session, stage=GATEWAY_STAGE)
        self._ring.send(self._first, frame, payload)

    def _open(self, prompt: tuple[int, ...], tokens: int) -> int:
        session = secrets.randbits(63)
        sampling = SamplingParams(temperature=0.0)
        opening = Opening(prompt, len(prompt), tokens, frozenset(), sampling, self._ring.endpoints)
        self._send(Flag.OPEN, session, msgspec.msgpack.encode(opening))
        return session

    def _next(self) -> tuple[int, Timed]:
        received = self._ring.receive(TOKEN_WITHIN_MS)
        assert received is not None, "no token came"
        frame, payload = received
        assert not frame.flags & Flag.FAILED, payload.tobytes().decode()
        return frame.session, Timed(int(payload[0]), time.monotonic_ns(), frame.compute_ns)
