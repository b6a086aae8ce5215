"""One shard in tinygrad, run in few shapes, each captured once and replayed. Knows nothing of slots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tinygrad import Tensor, TinyJit, UOp, Variable

from cluster.shard import Shard
from engines.engine import NO_LOGITS, Array, Chunk, FloatArray
from engines.rope import frequencies
from engines.tinygrad.llama import Llama
from models.config import ModelConfig

LONG, SHORT, ONE = 256, 32, 1
"""Rows that a captured shape has: a chunk is cut into these, its last piece padded up."""

FIRST_CAPACITY, GROWTH = 1024, 4
"""Positions in a new slot's cache, and by what it grows: each capacity is one more shape to capture."""


class TinygradStage:
    """A model's part with the functions captured for the shapes met so far.

    Padded rows write keys and values behind the valid ones: causality hides them until they are written over.
    """

    def __init__(self, model: Llama) -> None:
        self._model = model
        self._frequencies = frequencies(model.config)
        self._captured: dict[tuple[str, int, int], Any] = {}

    @property
    def config(self) -> ModelConfig:
        """The model's sizes."""
        return self._model.config

    @property
    def shard(self) -> Shard:
        """The layers that this stage owns."""
        return self._model.shard

    def cache(self) -> list[Tensor]:
        """An empty cache for one slot: a tensor (2, kv_heads, capacity, head_dim) per layer of the shard."""
        shape = (2, self.config.n_kv_heads, FIRST_CAPACITY, self.config.head_dim)
        return [Tensor.zeros(*shape).contiguous().realize() for _ in self._model.layers]

    def forward(self, batch: Sequence[Chunk], caches: Sequence[list[Tensor]]) -> list[FloatArray]:
        """Each chunk's hidden states (rows, hidden), or on the last stage its logits (vocab,)."""
        return [self._one(chunk, cache) for chunk, cache in zip(batch, caches, strict=True)]

    def truncate(self, cache: list[Tensor], position: int) -> None:
        """Nothing to do: what lies behind a slot's end is written over before it is read."""

    def _one(self, chunk: Chunk, cache: list[Tensor]) -> FloatArray:
        answers = [self._piece(chunk, cache, start, rows) for start, rows in pieces(chunk.rows)]
        return answers[-1] if self.shard.is_last else np.concatenate(answers)

    def _piece(self, chunk: Chunk, cache: list[Tensor], start: int, rows: int) -> FloatArray:
        """Run the chunk's rows from `start` on in the captured shape of `rows` rows."""
        inputs = chunk.inputs[start : start + rows]
        position = chunk.position + start
        reserve(cache, position + rows)
        bound = Variable("position", 0, self.config.context_length + LONG).bind(position)
        hidden = self._hidden(self._padded(inputs, rows), bound, self._turns(position, rows), cache)
        if not self.shard.is_last:
            return np.array(hidden.numpy()[: len(inputs)])
        if not chunk.wants_logits or start + len(inputs) < chunk.rows:
            return NO_LOGITS
        row = Variable("row", 0, LONG).bind(len(inputs) - 1)
        return np.array(self._capture("logits", rows, cache)(hidden, row).numpy()[0])

    def _hidden(self, inputs: Tensor, position: UOp, turns: Tensor, cache: list[Tensor]) -> Tensor:
        """One row runs as one captured graph, quick to replay; more rows layer by layer, quick to capture."""
        rows = int(inputs.shape[0])
        if rows == ONE:
            decoded: Tensor = self._capture("hidden", rows, cache)(inputs, position, turns, cache)
            return decoded
        hidden = self._capture("embedded", rows, cache)(inputs) if self.shard.is_first else inputs
        layer = self._capture("layer", rows, cache)
        for weights, held in zip(self._model.layers, cache, strict=True):
            hidden = layer(hidden, position, turns, held, weights)
        return hidden

    def _capture(self, function: str, rows: int, cache: list[Tensor]) -> Any:
        key = (function, rows, _capacity(cache))
        if key not in self._captured:
            self._captured[key] = TinyJit(getattr(self._model, function))
        return self._captured[key]

    def _padded(self, inputs: Array, rows: int) -> Tensor:
        padding = [(0, rows - len(inputs))] + [(0, 0)] * (inputs.ndim - 1)
        dtype = np.int32 if self.shard.is_first else np.float32
        return Tensor(np.pad(inputs.astype(dtype), padding)).realize()

    def _turns(self, position: int, rows: int) -> Tensor:
        angles = np.arange(position, position + rows, dtype=np.float32)[:, None] * self._frequencies
        return Tensor(np.stack((np.cos(angles), np.sin(angles)))).realize()


def pieces(rows: int) -> Iterator[tuple[int, int]]:
    """Cut a chunk of `rows` into (start, captured rows); the last piece may be longer than what is left."""
    start = 0
    while start < rows:
        left = rows - start
        size = ONE if left == ONE else LONG if left >= LONG else SHORT
        yield start, size
        start += size


def reserve(cache: list[Tensor], positions: int) -> None:
    """Grow a slot's tensors in place of the old ones until `positions` fit; what is stored stays."""
    capacity = _capacity(cache)
    while capacity < positions:
        capacity *= GROWTH
    missing = capacity - _capacity(cache)
    if missing:
        for index, held in enumerate(cache):
            cache[index] = held.pad((None, None, (0, missing), None)).contiguous().realize()


def _capacity(cache: list[Tensor]) -> int:
    return int(cache[0].shape[2])
