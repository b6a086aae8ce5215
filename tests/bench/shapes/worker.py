"""One side of the comparison in a process of its own: `python -m tests.bench.shapes.worker SIDE FILE FIRST END`.

SIDE is an engine, which gets the layers FIRST to END of the model, or `llama.cpp`: the library's bare loop over the
whole model, as its own benchmark programs run it. The process prints what loading took, then for each line of standard
input, the name of a turn, what that took. OMP_NUM_THREADS says how many threads compute.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import psutil

from cluster.shard import Shard
from common.machine import return_freed_memory
from engines.engine import Chunk
from engines.registry import create
from models.weights.gguf.parts import read_model_header
from ring.scheduler import PROMPT_CHUNK
from tests.bench.shapes.bare_llamacpp import BareLlamaCpp

BARE = "llama.cpp"
PROMPT, LONG, TOKENS, CROWD = 16, 128, 12, 8
KV_BYTES = 512 << 20


class Loaded(msgspec.Struct, frozen=True):
    """What loading took: wall seconds and those of the processor, and the process's bytes afterwards, of which `mapped`
    are those of files.
    """

    seconds: float
    cpu_seconds: float
    resident: int
    mapped: int


class Turn(msgspec.Struct, frozen=True):
    """Tokens per second of wall time, and of the process's own processor time."""

    per_s: float
    per_cpu_s: float


class Side(Protocol):
    """Computes rows of token ids: for each sequence, its first position and its ids. The last row gives logits."""

    def run(self, rows: Sequence[tuple[int, int, np.ndarray]]) -> None:
        """Compute the rows of all sequences in one pass, or in as many as the ring would."""
        ...

    def clear(self) -> None:
        """Forget all sequences."""
        ...


class EngineSide:
    """An engine of exobus, called as a stage calls it."""

    def __init__(self, name: str, path: Path, first: int, end: int) -> None:
        layers = int(read_model_header(path).metadata["llama.block_count"])
        self._engine = create(name)
        self._engine.load(Shard("random", first, end or layers, layers), path, KV_BYTES)
        return_freed_memory()  # as a stage does

    def run(self, rows: Sequence[tuple[int, int, np.ndarray]]) -> None:
        """Run a long prompt in the chunks of a ring."""
        if len(rows) == 1:
            ((slot, position, ids),) = rows
            for start in range(0, len(ids), PROMPT_CHUNK):
                part = ids[start : start + PROMPT_CHUNK]
                last = start + len(part) == len(ids)
                self._engine.forward([Chunk(slot, position + start, part, int(last))])
        else:
            self._engine.forward([Chunk(slot, position, ids, 1) for slot, position, ids in rows])

    def clear(self) -> None:
        """Release all slots."""
        for slot in range(CROWD):
            self._engine.release(slot)


class Turns:
    """The turns of one side. Ids are random, and never the same twice."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._random = np.random.default_rng(0)

    def prefill(self) -> Turn:
        """Measure a prompt of LONG tokens."""
        ids = self._ids(LONG)
        return _timed(LONG, lambda: self._side.run([(0, 0, ids)]))

    def decode(self) -> Turn:
        """Measure one stream after a prompt."""
        return self._streams(1)

    def streams(self) -> Turn:
        """Measure CROWD streams together, all tokens."""
        return self._streams(CROWD)

    def _streams(self, count: int) -> Turn:
        for stream in range(count):
            self._side.run([(stream, 0, self._ids(PROMPT))])

        def decode() -> None:
            for position in range(PROMPT, PROMPT + TOKENS):
                self._side.run([(stream, position, self._ids(1)) for stream in range(count)])

        return _timed(count * TOKENS, decode)

    def _ids(self, count: int) -> np.ndarray:
        return self._random.integers(0, 256, count).astype(np.int32)


def _timed(tokens: int, work: Callable[[], None]) -> Turn:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Turn(tokens / (time.perf_counter() - wall), tokens / (time.process_time() - cpu))


def _mapped() -> int:
    """Return the resident bytes of mapped files; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile")), 0)


def main(name: str, file: str, first: str, end: str) -> None:
    """Load, then take turns until standard input ends."""
    begun, cpu_begun = time.perf_counter(), time.process_time()
    path = Path(file)
    side: Side = BareLlamaCpp(path, CROWD) if name == BARE else EngineSide(name, path, int(first), int(end))
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
    _say(Loaded(seconds, cpu_seconds, psutil.Process().memory_info().rss, _mapped()))
    turns = Turns(side)
    for line in sys.stdin:
        _say(getattr(turns, line.strip())())
        side.clear()


def _say(result: Loaded | Turn) -> None:
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
