"""A shard that is loaded and can be reached, but has no place in a ring yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bus.dataplane.transport import Transport
from cluster.shard import Shard
from common.machine import return_freed_memory
from engines.engine import InferenceEngine
from engines.registry import create


@dataclass(frozen=True, slots=True)
class LoadedShard:
    """An engine with its shard, and the transport that listens for it; both belong to the thread that made them.

    `positions`: what its memory for keys and values holds.
    """

    engine: InferenceEngine
    epoch: int
    transport: Transport
    positions: int

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where other stages and gateways reach it."""
        return self.transport.endpoints

    @property
    def exact_rows(self) -> int:
        """How many rows of one session its engine computes together as it would each alone."""
        return self.engine.exact_rows

    @property
    def quantized_bits(self) -> int:
        """To how many bits its engine rounded float matrices; 0 if it rounded none."""
        return self.engine.quantized_bits

    @property
    def saves(self) -> bool:
        """Whether its engine can copy keys and values of this model."""
        return self.engine.saves

    def close(self) -> None:
        """Close the sockets and drop the weights."""
        self.transport.close()
        self.engine.close()


def load_shard(
    engine_name: str,
    shard: Shard,
    epoch: int,
    weights: Path,
    make_transport: Callable[[], Transport],
    *,
    kv_bytes: int,
    precision: str = "fast",
    bits: int = 0,
) -> LoadedShard:
    """Load a shard, on the thread that will compute it, and listen. `kv_bytes` of memory are for keys and values.

    With `bits` an engine that can rounds float matrices to as many.

    Raises EngineError, ModelError for weights that cannot be read, MemoryError, and OSError if it cannot listen.
    """
    engine = create(engine_name, precision, bits)
    engine.load(shard, weights, kv_bytes)
    return_freed_memory()
    return LoadedShard(engine, epoch, make_transport(), engine.positions(kv_bytes))
