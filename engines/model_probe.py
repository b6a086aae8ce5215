"""Measures how fast an engine runs one GGUF model: `python -m engines.model_probe NAME PRECISION FILE LAYERS SCALE`.

FILE is a small model of so many layers in the proportions of the one in question, which is SCALE times as large
(`engines.scaled_model`). The parent runs one such child after another, and `engines.choice` compares the results.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import msgspec
import numpy as np
import psutil

from cluster.shard import whole
from common.limits import MAX_DETAIL, cut
from engines.choice import ModelSpeed
from engines.engine import Chunk, InferenceEngine
from engines.errors import EngineError
from engines.probe import ProbeFailed, last_line
from engines.registry import create
from engines.scaled_model import write_scaled
from models.errors import ModelError
from models.weights.gguf.header import GgufHeader

KV_BYTES = 64 << 20
CHUNK = 64  # the rows of a prompt that a ring computes at a time
CHUNKS = 2
STEPS = 8


class Measured(NamedTuple):
    """The speeds of engines, and which share of the machine's processors other programs used meanwhile, 0 to 1."""

    speeds: tuple[ModelSpeed, ...]
    others: float


def measure(names: Iterable[str], precision: str, path: Path, header: GgufHeader, timeout_s: float) -> Measured:
    """Measure each engine on the model at `path` in a child process, one after another, at most `timeout_s` each.

    For an engine that cannot run the model `detail` says why. Raises OSError if the small model cannot be written.
    """
    with TemporaryDirectory(prefix="exobus-") as folder:
        small = Path(folder) / "model.gguf"
        scaled = write_scaled(small, path, header)
        sizes = str(scaled.n_layers), str(scaled.scale)
        begun, wall = _time_of_others(), time.monotonic()
        speeds = tuple(_measure_one(name, timeout_s, precision, str(small), *sizes) for name in names)
        processors = psutil.cpu_count() or 1
        others = (_time_of_others() - begun) / (processors * (time.monotonic() - wall))
        return Measured(speeds, min(max(others, 0.0), 1.0))


def time_model(engine: InferenceEngine, scale: float) -> tuple[float, float]:
    """Return the milliseconds of a decode step, and of a row of a prompt, each the best of some.

    The best, because whatever else runs on the machine only ever adds to them. One thread of a CPU is timed by its
    processor time, to which other processes add least. Each row gives logits: llama.cpp computes only the rows that do
    in most of its last layer, which is a large part of a small model.
    """
    alone = engine.capabilities().device == "CPU" and os.environ.get("OMP_NUM_THREADS") == "1"
    clock = time.process_time if alone else time.perf_counter

    def best(first: int, rows: int, count: int) -> float:
        marks = [clock()]
        for position in range(first, first + rows * count, rows):
            engine.forward([Chunk(0, position, np.zeros(rows, np.int32), rows)])
            marks.append(clock())
        return 1000 * scale * min(end - begun for begun, end in pairwise(marks))

    prompt_ms = best(0, CHUNK, CHUNKS) / CHUNK
    return best(CHUNK * CHUNKS, 1, STEPS), prompt_ms


def _time_of_others() -> float:
    """Return the processor time, in seconds, of all but this process and the children that it has waited for.

    That includes what the host of a virtual machine took away.
    """
    times, ours = psutil.cpu_times(), os.times()
    idle, guests = times.idle + getattr(times, "iowait", 0.0), getattr(times, "guest", 0.0)  # guests count as user, too
    return float(sum(times) - idle - guests - getattr(times, "guest_nice", 0.0) - sum(ours[:4]))


def _measure_one(name: str, timeout_s: float, *arguments: str) -> ModelSpeed:
    try:
        said = last_line(timeout_s, "engines.model_probe", name, *arguments)
        return msgspec.json.decode(said, type=ModelSpeed)
    except ProbeFailed as failed:
        return ModelSpeed(name, detail=str(failed))


def main(name: str, precision: str, file: str, layers: str, scale: str) -> None:
    """Print one JSON line, a ModelSpeed. If the engine cannot run the model, its `detail` says why."""
    try:
        engine = create(name, precision)
        engine.load(whole("measured", int(layers)), Path(file), KV_BYTES)
        found = ModelSpeed(name, *time_model(engine, float(scale)))
        engine.close()
    except (EngineError, ModelError) as error:
        found = ModelSpeed(name, detail=cut(str(error), MAX_DETAIL))
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
