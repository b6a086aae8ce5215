"""Engines in child processes, and rings of stages, for the tests of every engine.

A child is started as `python -m tests.support.engines` and replies over its pipes, in length-prefixed MessagePack.
"""

from __future__ import annotations

import importlib
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any, Protocol, Self

import msgpack
import numpy as np
import psutil

from cluster.capabilities import EngineCapability
from cluster.sampling import SamplingParams
from cluster.shard import Shard, whole
from engines.activations import packed, unpacked
from engines.engine import Chunk, FloatArray, InferenceEngine, SavedKV
from engines.errors import EngineError
from engines.numpy.engine import NumpyEngine
from engines.sampler import sample
from models.architecture import Dtype

ROOT = Path(__file__).resolve().parent.parent.parent
GREEDY = SamplingParams(temperature=0.0)
PROMPT = [5, 250, 17, 99, 3, 3, 120, 64, 200, 31, 7]
"""Token ids of the tiny models."""

TINY_TOLERANCES: Mapping[str, float] = MappingProxyType({"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2})
"""By the model's dtype, the largest difference of a logit between two engines on the tiny models.

Their logits are about 1. If a rounding separates the last bits of two float32 products, hidden states differ by a whole
unit of the 16-bit dtype, and later layers carry that on: the largest measured are 1.6e-3 and 9.7e-3.
"""


class Forwards(Protocol):
    """An engine in this process or in a child."""

    def forward(self, batch: Sequence[Chunk]) -> list[FloatArray]: ...

    def truncate(self, slot: int, position: int) -> None: ...

    def save(self, slot: int, start: int, end: int) -> SavedKV: ...

    def restore(self, slot: int, saved: SavedKV) -> None: ...

    def release(self, slot: int) -> None: ...


@dataclass
class Generation:
    """What a ring generated: the tokens, and the logits (vocab,) from which each was chosen."""

    tokens: list[int] = field(default_factory=list)
    logits: list[FloatArray] = field(default_factory=list)


class Ring:
    """Stages in order. Hidden states go from one to the next in the bytes of `carried`, as in frames."""

    def __init__(self, stages: Sequence[Forwards], carried: Dtype = "float32") -> None:
        self.stages = stages
        self._carried: Dtype = carried

    def step(self, slot: int, position: int, tokens: Sequence[int], wants_logits: bool = True) -> FloatArray:
        """Return the logits (vocab,) after `tokens`, or an empty array if none are wanted."""
        inputs: np.ndarray = np.array(tokens, np.int32)
        for stage in self.stages:
            output = stage.forward([Chunk(slot, position, inputs, int(wants_logits))])[0]
            inputs = unpacked(packed(output, self._carried))
        return output[-1] if wants_logits else output

    def generate(self, prompt: Sequence[int], count: int, params: SamplingParams = GREEDY, slot: int = 0) -> Generation:
        """Generate `count` tokens after `prompt`, each in a real decode step. The slot is free afterwards."""
        made, pending, position = Generation(), list(prompt), 0
        while len(made.tokens) < count:
            logits = self.step(slot, position, pending)
            position += len(pending)
            pending = [sample(logits, params, position)]
            made.tokens += pending
            made.logits.append(logits)
        for stage in self.stages:
            stage.release(slot)
        return made


def numpy_engine(path: Path, shard: Shard = whole("tiny", 4)) -> NumpyEngine:  # noqa: B008 - a frozen value
    """Return the reference engine with a shard, by default the whole tiny model."""
    engine = NumpyEngine()
    engine.load(shard, path)
    return engine


def tokens(slot: int, position: int, ids: Sequence[int], wants_logits: bool = True) -> Chunk:
    """Make a chunk of token ids that wants the logits of its last row, or none."""
    return Chunk(slot, position, np.array(ids, np.int32), int(wants_logits))


def cut(model_id: str, n_layers: int, *cuts: int) -> list[Shard]:
    """Return the shards between the cuts; without cuts, the whole model."""
    edges = (0, *cuts, n_layers)
    return [Shard(model_id, a, b, n_layers) for a, b in pairwise(edges)]


def largest_difference(ours: Generation, theirs: Generation) -> float:
    """Return the largest absolute difference of any logit at any step."""
    pairs = zip(ours.logits, theirs.logits, strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


class EngineProcess:
    """A child process that holds any number of engines, as a context manager."""

    def __init__(self, threads: int = 1, **environment: str) -> None:
        self._environment = os.environ | {"OMP_NUM_THREADS": str(threads)} | environment

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.support.engines"]
        self._child = subprocess.Popen(
            command, cwd=ROOT, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._child.communicate(timeout=10)  # closes the child's input, which ends it
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.communicate(timeout=10)
            raise

    def create(self, name: str, precision: str = "exact") -> HostedEngine:
        """Create an engine in the child. llama.cpp is `fast` if it should be `exact`."""
        return HostedEngine(self, int(self.call("create", name, precision)))

    def load(self, name: str, shard: Shard, weights: Path, precision: str = "exact") -> HostedEngine:
        """Create an engine in the child and load a shard."""
        engine = self.create(name, precision)
        engine.load(shard, weights)
        return engine

    def resident_bytes(self) -> int:
        """Return the child's resident memory."""
        return int(psutil.Process(self._child.pid).memory_info().rss)

    def open_file_limits(self) -> tuple[int, int]:
        """Return the child's RLIMIT_NOFILE, soft and hard."""
        soft, hard = self.call("limits")
        return soft, hard

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of `Host` in the child. Raises the EngineError that it raises there."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        write(self._child.stdin, [method, *arguments])
        error, result = read(self._child.stdout)
        if error is not None:
            raise EngineError(error)
        return result


class HostedEngine:
    """One engine of an `EngineProcess`."""

    def __init__(self, process: EngineProcess, index: int) -> None:
        self._process = process
        self._index = index

    def load(self, shard: Shard, weights: Path) -> None:
        edges = [shard.model_id, shard.start_layer, shard.end_layer, shard.n_layers]
        self._process.call("load", self._index, edges, str(weights))

    def forward(self, batch: Sequence[Chunk]) -> list[FloatArray]:
        packed = [[c.slot, c.position, pack(c.inputs), c.logits] for c in batch]
        return [unpack(output) for output in self._process.call("forward", self._index, packed)]

    def truncate(self, slot: int, position: int) -> None:
        self._process.call("truncate", self._index, slot, position)

    def save(self, slot: int, start: int, end: int) -> SavedKV:
        """Copy positions in the child. `content` is the child's number for the copy."""
        return SavedKV(*self._process.call("save", self._index, slot, start, end))

    def restore(self, slot: int, saved: SavedKV) -> None:
        self._process.call("restore", self._index, slot, saved.content)

    def release(self, slot: int) -> None:
        self._process.call("release", self._index, slot)

    def position_bytes(self) -> int:
        return int(self._process.call("position_bytes", self._index))

    def activations(self) -> str:
        return str(self._process.call("activations", self._index))

    def capabilities(self) -> EngineCapability:
        return EngineCapability(**self._process.call("capabilities", self._index))

    def close(self) -> None:
        self._process.call("close", self._index)


class Host:
    """The child's side: engines by number, and the methods that a parent may call."""

    def __init__(self) -> None:
        self._engines: list[InferenceEngine] = []
        self._saved: list[SavedKV] = []

    def create(self, name: str, precision: str) -> int:
        if (name, precision) == ("llamacpp", "exact"):
            precision = "fast"
        self._engines.append(importlib.import_module("engines.registry").create(name, precision))
        return len(self._engines) - 1

    def load(self, index: int, edges: list[Any], weights: str) -> None:
        self._engines[index].load(Shard(*edges), Path(weights))

    def forward(self, index: int, batch: list[list[Any]]) -> list[Any]:
        chunks = [Chunk(slot, position, unpack(inputs), logits) for slot, position, inputs, logits in batch]
        return [pack(output) for output in self._engines[index].forward(chunks)]

    def truncate(self, index: int, slot: int, position: int) -> None:
        self._engines[index].truncate(slot, position)

    def save(self, index: int, slot: int, start: int, end: int) -> list[int]:
        saved = self._engines[index].save(slot, start, end)
        self._saved.append(saved)
        return [saved.start, saved.end, saved.nbytes, len(self._saved) - 1]

    def restore(self, index: int, slot: int, number: int) -> None:
        self._engines[index].restore(slot, self._saved[number])

    def position_bytes(self, index: int) -> int:
        return self._engines[index].position_bytes

    def activations(self, index: int) -> str:
        return self._engines[index].activations

    def release(self, index: int, slot: int) -> None:
        self._engines[index].release(slot)

    def capabilities(self, index: int) -> dict[str, Any]:
        found = self._engines[index].capabilities()
        return {field: getattr(found, field) for field in found.__struct_fields__}

    def close(self, index: int) -> None:
        self._engines[index].close()

    def limits(self) -> list[int]:
        return list(resource.getrlimit(resource.RLIMIT_NOFILE))

    def serve(self, requests: IO[bytes], replies: IO[bytes]) -> None:
        """Serve calls until the parent closes its end."""
        while (request := read(requests)) is not None:
            method, *arguments = request
            call: Callable[..., Any] = getattr(self, method)
            try:
                write(replies, [None, call(*arguments)])
            except EngineError as error:
                write(replies, [str(error), None])


def pack(array: np.ndarray) -> list[Any]:
    return [array.dtype.str, list(array.shape), array.tobytes()]


def unpack(packed: list[Any]) -> np.ndarray:
    dtype, shape, data = packed
    return np.frombuffer(data, dtype).reshape(shape)


def write(pipe: IO[bytes], value: Any) -> None:
    body = msgpack.packb(value)
    pipe.write(len(body).to_bytes(4, "little") + body)
    pipe.flush()


def read(pipe: IO[bytes]) -> Any:
    """Read the next value, or None if the other side has closed the pipe."""
    header = pipe.read(4)
    return msgpack.unpackb(pipe.read(int.from_bytes(header, "little"))) if len(header) == 4 else None


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "wb") as replies_pipe:
        os.dup2(2, 1)  # what libraries print goes to standard error
        Host().serve(sys.stdin.buffer, replies_pipe)
