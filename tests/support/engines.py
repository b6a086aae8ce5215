"""Engines in child processes, and rings of stages, for the tests of every engine.

A child is started as `python -m tests.support.engines` and answers over its pipes: length-prefixed MessagePack.
"""

from __future__ import annotations

import importlib
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any, Protocol, Self

import msgpack
import numpy as np
import psutil

from cluster.capabilities import EngineCapability
from cluster.shard import Shard
from engines.activations import packed, unpacked
from engines.engine import Chunk, EngineError, FloatArray, InferenceEngine, SavedKV
from engines.sampling import SamplingParams, sample
from models.config import Dtype

ROOT = Path(__file__).resolve().parent.parent.parent
GREEDY = SamplingParams(temperature=0.0)

TINY_TOLERANCES: Mapping[str, float] = MappingProxyType({"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2})
"""By the model's dtype, the largest difference of a logit between two engines on the tiny models.

Their logits are of the size of 1. Where the last bits of two float32 products straddle a rounding, hidden states
differ by a whole unit of the 16-bit dtype, and later layers carry that on: measured 1.6e-3 and 9.7e-3 at most.
"""


class Forwards(Protocol):
    """An engine here or in a child."""

    def forward(self, batch: Sequence[Chunk]) -> list[FloatArray]: ...

    def truncate(self, slot: int, position: int) -> None: ...

    def save(self, slot: int, start: int, end: int) -> SavedKV: ...

    def restore(self, slot: int, saved: SavedKV) -> None: ...

    def release(self, slot: int) -> None: ...


@dataclass
class Generation:
    """What a ring answered: the tokens, and the logits (vocab,) that each was chosen from."""

    tokens: list[int] = field(default_factory=list)
    logits: list[FloatArray] = field(default_factory=list)


class Ring:
    """Stages in order; hidden states go from one to the next in the bytes of `carried`, as in frames."""

    def __init__(self, stages: Sequence[Forwards], carried: Dtype = "float32") -> None:
        self.stages = stages
        self._carried: Dtype = carried

    def step(self, slot: int, position: int, tokens: Sequence[int], wants_logits: bool = True) -> FloatArray:
        """Logits (vocab,) after `tokens`, or nothing when none are wanted."""
        inputs: np.ndarray = np.array(tokens, np.int32)
        for stage in self.stages:
            answer = stage.forward([Chunk(slot, position, inputs, int(wants_logits))])[0]
            inputs = unpacked(packed(answer, self._carried))
        return answer[-1] if wants_logits else answer

    def generate(self, prompt: Sequence[int], count: int, params: SamplingParams = GREEDY, slot: int = 0) -> Generation:
        """`count` tokens after `prompt`, each from a real decode step; the slot is free afterwards."""
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


def cut(model_id: str, n_layers: int, *cuts: int) -> list[Shard]:
    """The shards between the cuts, the whole model without any."""
    edges = (0, *cuts, n_layers)
    return [Shard(model_id, a, b, n_layers) for a, b in pairwise(edges)]


def largest_difference(ours: Generation, theirs: Generation) -> float:
    """The largest absolute difference of any logit of any step."""
    pairs = zip(ours.logits, theirs.logits, strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


class EngineProcess:
    """A child process that holds any number of engines; use it as a context manager."""

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

    def create(self, name: str) -> HostedEngine:
        """A fresh engine in the child."""
        return HostedEngine(self, int(self.ask("create", name)))

    def load(self, name: str, shard: Shard, weights: Path) -> HostedEngine:
        """A fresh engine in the child that holds a shard."""
        engine = self.create(name)
        engine.load(shard, weights)
        return engine

    def resident_bytes(self) -> int:
        """What the child's memory takes now."""
        return int(psutil.Process(self._child.pid).memory_info().rss)

    def open_file_limits(self) -> tuple[int, int]:
        """The child's RLIMIT_NOFILE, soft and hard."""
        soft, hard = self.ask("limits")
        return soft, hard

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of `Host` in the child. Its EngineError is raised here."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        write(self._child.stdin, [method, *arguments])
        error, answer = read(self._child.stdout)
        if error is not None:
            raise EngineError(error)
        return answer


class HostedEngine:
    """One engine of an `EngineProcess`."""

    def __init__(self, process: EngineProcess, index: int) -> None:
        self._process = process
        self._index = index

    def load(self, shard: Shard, weights: Path) -> None:
        edges = [shard.model_id, shard.start_layer, shard.end_layer, shard.n_layers]
        self._process.ask("load", self._index, edges, str(weights))

    def forward(self, batch: Sequence[Chunk]) -> list[FloatArray]:
        packed = [[c.slot, c.position, pack(c.inputs), c.logits] for c in batch]
        return [unpack(answer) for answer in self._process.ask("forward", self._index, packed)]

    def truncate(self, slot: int, position: int) -> None:
        self._process.ask("truncate", self._index, slot, position)

    def save(self, slot: int, start: int, end: int) -> SavedKV:
        """The copy stays in the child; its `content` is the child's number for it."""
        return SavedKV(*self._process.ask("save", self._index, slot, start, end))

    def restore(self, slot: int, saved: SavedKV) -> None:
        self._process.ask("restore", self._index, slot, saved.content)

    def release(self, slot: int) -> None:
        self._process.ask("release", self._index, slot)

    def position_bytes(self) -> int:
        return int(self._process.ask("position_bytes", self._index))

    def activations(self) -> str:
        return str(self._process.ask("activations", self._index))

    def capabilities(self) -> EngineCapability:
        return EngineCapability(**self._process.ask("capabilities", self._index))

    def close(self) -> None:
        self._process.ask("close", self._index)


class Host:
    """The child's side: engines by number, and the methods that a parent may ask for."""

    def __init__(self) -> None:
        self._engines: list[InferenceEngine] = []
        self._saved: list[SavedKV] = []

    def create(self, name: str) -> int:
        self._engines.append(importlib.import_module("engines.registry").create(name, "exact"))
        return len(self._engines) - 1

    def load(self, index: int, edges: list[Any], weights: str) -> None:
        self._engines[index].load(Shard(*edges), Path(weights))

    def forward(self, index: int, batch: list[list[Any]]) -> list[Any]:
        chunks = [Chunk(slot, position, unpack(inputs), logits) for slot, position, inputs, logits in batch]
        return [pack(answer) for answer in self._engines[index].forward(chunks)]

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

    def serve(self, requests: IO[bytes], answers: IO[bytes]) -> None:
        """Until the parent closes its end."""
        while (request := read(requests)) is not None:
            method, *arguments = request
            call: Callable[..., Any] = getattr(self, method)
            try:
                write(answers, [None, call(*arguments)])
            except EngineError as error:
                write(answers, [str(error), None])


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
    """The next value; None when the other side has closed the pipe."""
    header = pipe.read(4)
    return msgpack.unpackb(pipe.read(int.from_bytes(header, "little"))) if len(header) == 4 else None


@contextmanager
def answers_only_on(descriptor: int) -> Iterator[IO[bytes]]:
    """The pipe to the parent; what libraries print goes to standard error instead."""
    with os.fdopen(os.dup(descriptor), "wb") as answers:
        os.dup2(2, descriptor)
        yield answers


if __name__ == "__main__":
    with answers_only_on(1) as pipe:
        Host().serve(sys.stdin.buffer, pipe)
