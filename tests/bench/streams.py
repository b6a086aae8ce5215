"""A gateway without text, for timing: opens sessions on a node's instance and stamps every token that comes back."""

from __future__ import annotations

import asyncio
import secrets
import time
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
        session = secrets.randbits(63)
        opening = Opening(
            prompt, len(prompt), tokens, frozenset(), SamplingParams(temperature=0.0), self._ring.endpoints
        )
        self._send(Flag.OPEN, session, msgspec.msgpack.encode(opening))
        came = [self._next() for _ in range(tokens)]
        self._send(Flag.CLOSE, session, b"")
        return came

    def close(self) -> None:
        """Close the sockets."""
        self._ring.close()

    def _send(self, flag: int, session: int, payload: bytes) -> None:
        frame = Frame(flag, self._instance.epoch, session, stage=GATEWAY_STAGE)
        self._ring.send(self._first, frame, payload)

    def _next(self) -> Timed:
        received = self._ring.receive(TOKEN_WITHIN_MS)
        assert received is not None, "no token came"
        frame, payload = received
        assert not frame.flags & Flag.FAILED, payload.tobytes().decode()
        return Timed(int(payload[0]), time.monotonic_ns(), frame.compute_ns)
