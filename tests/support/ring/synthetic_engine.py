"""An engine with a fixed cost per call, and tokens that are hashes of all tokens before them.

It sleeps instead of computing, so a ring of eight stages runs on two cores and only the schedule is measured. It knows
no stages and no processes.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from cluster.capabilities import EngineCapability
from cluster.shard import Shard
from engines.base import SlotEngine
from engines.engine import KV_BYTES, Chunk, FloatArray, SavedKV
from engines.random_weights import RandomWeights
from models.architecture import Architecture, Dtype
from models.families import described
from models.settings import Settings
from models.sizes import shard_sizes
from models.weights.reader import Weights

DECODE_ROWS = 9  # a token and eight drafts; a longer chunk is of a prompt
JOURNAL = 200_000  # entries that are kept
HASH_BYTES = 8
_WHOLE_PREFIX = 1 << 62
_TIMER_SLACK = 29  # PR_SET_TIMERSLACK of prctl(2)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Hashes = npt.NDArray[np.uint64]


class Model(msgspec.Struct, frozen=True):
    """The sizes of a model without weights, and the cost of one stage in milliseconds.

    A call costs `call_ms`, and each row `row_ms`, or `prompt_row_ms` in a prompt's chunk. With a `window`, a layer
    sees only so many positions back, so the text repeats itself sooner or later.
    """

    call_ms: float = 0.0
    row_ms: float = 0.0
    prompt_row_ms: float = 0.0
    n_layers: int = 8
    hidden_size: int = HASH_BYTES
    vocab_size: int = 512
    context_length: int = 16384
    window: int = 0
    dtype: Dtype = "float32"

    def cost_ns(self, batch: Sequence[Chunk]) -> int:
        """Return what a call takes, in nanoseconds."""
        rows = sum(chunk.rows for chunk in batch if chunk.rows <= DECODE_ROWS)
        prompt_rows = sum(chunk.rows for chunk in batch if chunk.rows > DECODE_ROWS)
        return round((self.call_ms + self.row_ms * rows + self.prompt_row_ms * prompt_rows) * 1e6)

    @property
    def settings(self) -> dict[str, Any]:
        """The sizes as in a config.json. Heads of two numbers are the smallest that there are."""
        return {
            "model_type": "llama",
            "num_hidden_layers": self.n_layers,
            "hidden_size": self.hidden_size,
            "num_attention_heads": 1,
            "head_dim": 2,
            "intermediate_size": 1,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.context_length,
            "torch_dtype": self.dtype,
        }

    @property
    def architecture(self) -> Architecture:
        """The description that engines ask for."""
        return described(Settings(self.settings, "the synthetic model"))


class Call(msgspec.Struct, frozen=True):
    """One `forward`: its begin and end (monotonic nanoseconds), and (slot, position, rows) of each chunk."""

    begun_ns: int
    ended_ns: int
    chunks: tuple[tuple[int, int, int], ...]


class Released(msgspec.Struct, frozen=True):
    """A slot that was freed."""

    at_ns: int
    slot: int


class Journal(msgspec.Struct):
    """The calls of an engine in order, and the number of its slots."""

    slots: int = 0
    calls: deque[Call] = msgspec.field(default_factory=lambda: deque(maxlen=JOURNAL))
    released: deque[Released] = msgspec.field(default_factory=lambda: deque(maxlen=JOURNAL))


class SyntheticWeights(RandomWeights):
    """Weights that are a `Model` only."""

    def __init__(self, model: Model) -> None:
        super().__init__(model.settings)
        self.model = model


class Marks:
    """A slot's cache: one number for each layer and position, (layers, capacity)."""

    def __init__(self, layers: int) -> None:
        self.numbers: Hashes = np.zeros((layers, 256), np.uint64)

    def reach(self, positions: int) -> None:
        """Have room for so many positions."""
        if positions > self.numbers.shape[1]:
            longer = np.zeros((len(self.numbers), 2 * positions), np.uint64)
            longer[:, : self.numbers.shape[1]] = self.numbers
            self.numbers = longer


class SyntheticStage:
    """One shard. Each layer stores a hash of its input per position, and returns a hash of all those stored so far.

    So every number depends on the caches of all layers before it, and on their order, for any split.
    """

    def __init__(self, model: Model, shard: Shard, journal: Journal) -> None:
        sizes = shard_sizes(model.architecture, shard)
        self.sizes = msgspec.structs.replace(sizes, position_bytes=HASH_BYTES * len(shard.layers))
        self.shard = shard
        self._model = model
        self._journal = journal

    def new_cache(self) -> Marks:
        """Return a cache without positions."""
        self._journal.slots += 1
        return Marks(len(self.shard.layers))

    def forward(self, batch: Sequence[Chunk], caches: Sequence[Marks]) -> list[FloatArray]:
        """Compute the hashes, then sleep for the rest of the cost."""
        begun = time.monotonic_ns()
        answers = [self._run(chunk, cache) for chunk, cache in zip(batch, caches, strict=True)]
        sleep_until(begun + self._model.cost_ns(batch))
        chunks = tuple((chunk.slot, chunk.position, chunk.rows) for chunk in batch)
        self._journal.calls.append(Call(begun, time.monotonic_ns(), chunks))
        return answers

    def truncate(self, cache: Marks, position: int) -> None:
        """Overwrite the discarded positions, so that any use of them changes a token."""
        cache.numbers[:, position:] = 0

    def save(self, cache: Marks, start: int, end: int) -> SavedKV:
        """Copy positions."""
        copy = cache.numbers[:, start:end].copy()
        return SavedKV(start, end, copy.nbytes, copy)

    def restore(self, cache: Marks, saved: SavedKV) -> None:
        """Write a copy of positions."""
        cache.reach(saved.end)
        cache.numbers[:, saved.start : saved.end] = saved.content

    def release(self, cache: Marks) -> None:
        """Count the slot as free."""
        self._journal.slots -= 1

    def _run(self, chunk: Chunk, cache: Marks) -> FloatArray:
        end = chunk.position + chunk.rows
        cache.reach(end)
        values = chunk.inputs.astype(np.uint64) if self.shard.is_first else hashes_of(chunk.inputs)
        for marks, layer in zip(cache.numbers, self.shard.layers, strict=True):
            values = self._layer(values, marks[:end], chunk.position, layer)
        if not self.shard.is_last:
            return rows_of(values, self._model.hidden_size)
        logits = np.zeros((chunk.logits, self._model.vocab_size), np.float32)
        peaks = values[chunk.rows - chunk.logits :] % np.uint64(self._model.vocab_size)
        logits[np.arange(chunk.logits), peaks.astype(np.intp)] = 1.0
        return logits

    def _layer(self, values: Hashes, marks: Hashes, position: int, layer: int) -> Hashes:
        """Store the last `len(values)` of `marks`; return a hash of all marks that each of those positions sees."""
        ends = np.arange(position + 1, len(marks) + 1)
        places = ends.astype(np.uint64) * np.uint64(
            not self._model.window
        )  # without positions, a text can repeat itself
        marks[position:] = mixed(values + mixed(places * _GOLDEN + np.uint64(layer + 1)))
        sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(marks, dtype=np.uint64)))
        return mixed(sums[ends] - sums[np.maximum(ends - (self._model.window or _WHOLE_PREFIX), 0)])


class SyntheticEngine(SlotEngine[Marks]):
    """An engine that checks slots, positions and contexts like any other. One wrong position changes its tokens."""

    name: ClassVar[str] = "synthetic"
    exact_rows: int = 64

    def __init__(self) -> None:
        super().__init__()
        self.journal = Journal()

    def load(self, shard: Shard, weights: Path, kv_bytes: int = KV_BYTES) -> None:
        """Read a `Model` from a file of JSON."""
        self.read(shard, SyntheticWeights(msgspec.json.decode(weights.read_bytes(), type=Model)))

    def build(self, shard: Shard, weights: Weights) -> SyntheticStage:
        """Make the stage, on the thread that will sleep."""
        assert isinstance(weights, SyntheticWeights)
        sleep_precisely()
        return SyntheticStage(weights.model, shard, self.journal)

    def release(self, slot: int) -> None:
        """Release the slot, and record the time."""
        super().release(slot)
        self.journal.released.append(Released(time.monotonic_ns(), slot))

    def capabilities(self) -> EngineCapability:
        """Return its name only."""
        return EngineCapability(name=self.name, device="none")


def mixed(values: Hashes) -> Hashes:
    """Apply the finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators", 2014).
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def rows_of(hashes: Hashes, width: int) -> FloatArray:
    """Return hashes as hidden states (rows, width): a byte per value, which all dtypes of frames hold exactly."""
    rows = np.zeros((len(hashes), width), np.float32)
    rows[:, :HASH_BYTES] = hashes.astype("<u8").view(np.uint8).reshape(len(hashes), HASH_BYTES)
    return rows


def hashes_of(rows: npt.NDArray[np.generic]) -> Hashes:
    """Return the hashes of hidden states, the inverse of `rows_of`."""
    return rows[:, :HASH_BYTES].astype(np.uint8).view("<u8").reshape(len(rows)).astype(np.uint64)


def sleep_precisely() -> None:
    """Have this thread woken on time: by default, Linux may let a sleep last 50 µs longer. Elsewhere do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_TIMER_SLACK, 1, 0, 0, 0)


def sleep_until(deadline_ns: int) -> None:
    """Sleep to a moment of the monotonic clock, so that the computing before it is part of the cost."""
    left = deadline_ns - time.monotonic_ns()
    if left > 0:
        time.sleep(left / 1e9)
