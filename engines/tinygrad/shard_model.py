"""One shard in tinygrad, run in a few shapes, each captured once and replayed. Knows no slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from tinygrad import Tensor, TinyJit, UOp, Variable

from engines.engine import NO_LOGITS, Chunk, FloatArray, SavedKV
from engines.rope import rotations
from engines.tinygrad.model import TinygradModel, copied, store
from models.sizes import shard_sizes

LONG, SHORT, ONE = 256, 32, 1
"""The numbers of rows of captured shapes. A chunk is cut into pieces of these, and its last piece is padded."""

GROUP_SIZES = (8, 4, 2, ONE)
"""The numbers of slots with single rows that can be one pass. Each is one more shape to capture."""

FIRST_CAPACITY, GROWTH = 512, 2
"""Positions in a new slot's cache, and the factor by which it grows. Each capacity is one more shape to capture."""


class TinygradShardModel:
    """A shard's model, with the functions captured for the shapes used so far.

    Padded rows write keys and values after the valid ones, where causality hides them until they are overwritten.
    """

    def __init__(self, model: TinygradModel) -> None:
        self.architecture = model.architecture
        self.shard = model.shard
        self.sizes = shard_sizes(model.architecture, model.shard)
        self._model = model
        self._captured: dict[tuple[str | int, ...], Any] = {}

    def new_cache(self) -> list[Tensor]:
        """Make an empty cache for one slot: a tensor (2, kv_heads, capacity, head_dim) for each layer of the shard."""
        shape = (2, self.architecture.heads.kv_heads, FIRST_CAPACITY, self.architecture.heads.head_dim)
        return [Tensor.zeros(*shape).contiguous().realize() for _ in self._model.layers]

    def forward(self, batch: Sequence[Chunk], caches: Sequence[list[Tensor]]) -> list[FloatArray]:
        """Compute each chunk's hidden states (rows, hidden), or on the last stage its logits (logits, vocab)."""
        for chunk, cache in zip(batch, caches, strict=True):
            reserve(cache, chunk.position + padded_rows(chunk.rows))
        outputs = [NO_LOGITS] * len(batch)
        for group in passes([chunk.rows for chunk in batch], [capacity(cache) for cache in caches]):
            chunks, held = [batch[index] for index in group], [caches[index] for index in group]
            run = [self._run_long(chunks[0], held[0])] if chunks[0].rows > 1 else self._run_single_rows(chunks, held)
            for index, output in zip(group, run, strict=True):
                outputs[index] = output
        return outputs

    def truncate(self, cache: list[Tensor], position: int) -> None:
        """Do nothing: what lies after a slot's end is overwritten before it is read."""

    def save(self, cache: list[Tensor], start: int, end: int) -> SavedKV:
        """Copy positions into a numpy array (layers, 2, kv_heads, positions, head_dim)."""
        parts = []
        for offset, rows in pieces(end - start):
            reserve(cache, start + offset + rows)
            copy = self._capture(copied, rows, capacity(cache))
            layers = [copy(held, self._bound(start + offset), rows).numpy() for held in cache]
            parts.append(np.stack(layers)[..., : end - start - offset, :])
        content = np.concatenate(parts, axis=3)
        return SavedKV(start, end, content.nbytes, content)

    def restore(self, cache: list[Tensor], saved: SavedKV) -> None:
        """Append a copy. Its last piece is padded after the valid positions."""
        for offset, rows in pieces(saved.end - saved.start):
            reserve(cache, saved.start + offset + rows)
            part = saved.content[..., offset : offset + rows, :]
            fresh = np.pad(part, [(0, 0)] * 3 + [(0, rows - part.shape[3]), (0, 0)])
            write = self._capture(store, rows, capacity(cache))
            for held, layer in zip(cache, fresh, strict=True):
                write(held, Tensor(layer).realize(), self._bound(saved.start + offset))

    def release(self, cache: list[Tensor]) -> None:
        """Do nothing: the tensors are freed with the cache."""

    def _run_single_rows(self, chunks: Sequence[Chunk], caches: Sequence[list[Tensor]]) -> list[FloatArray]:
        """Run one row of each of several slots in one pass."""
        inputs = self._tensor(np.concatenate([chunk.inputs for chunk in chunks]))
        hidden = self._hidden(inputs, [chunk.position for chunk in chunks], caches)
        if not self.shard.is_last:
            return list(np.array(hidden.numpy())[:, None])
        if not any(chunk.logits for chunk in chunks):
            return [NO_LOGITS] * len(chunks)
        logits = self._logits(hidden, 0, len(chunks))
        return [row[None] if chunk.logits else NO_LOGITS for row, chunk in zip(logits, chunks, strict=True)]

    def _run_long(self, chunk: Chunk, cache: list[Tensor]) -> FloatArray:
        """Run one chunk in pieces of the captured shapes."""
        outputs = [self._run_piece(chunk, cache, start, rows) for start, rows in pieces(chunk.rows)]
        return np.concatenate([output for output in outputs if len(output)] or [NO_LOGITS])

    def _run_piece(self, chunk: Chunk, cache: list[Tensor], start: int, rows: int) -> FloatArray:
        """Run the chunk's rows from `start` on in the captured shape of `rows` rows."""
        inputs = chunk.inputs[start : start + rows]
        padded = np.pad(inputs, [(0, rows - len(inputs))] + [(0, 0)] * (inputs.ndim - 1))
        hidden = self._hidden(self._tensor(padded), [chunk.position + start], [cache])
        if self.shard.is_last:
            return self._logits(hidden, max(0, chunk.rows - chunk.logits - start), len(inputs))
        return np.array(hidden.numpy()[: len(inputs)])

    def _hidden(self, inputs: Tensor, positions: Sequence[int], caches: Sequence[list[Tensor]]) -> Tensor:
        """Run rows of one slot, or the same number of rows of each of several.

        A single row is one captured graph, which is quick to replay. More rows run layer by layer, which is quick to
        capture, since one captured layer serves all of its kind.
        """
        rows, room = int(inputs.shape[0]), capacity(caches[0])
        each = range(rows // len(positions))
        ropes = self._ropes([position + row for position in positions for row in each])
        bound = [self._bound(position, index) for index, position in enumerate(positions)]
        if rows == ONE:
            decoded: Tensor = self._capture(self._model.hidden, rows, room)(inputs, ropes, caches[0], *bound)
            return decoded
        hidden = self._capture(self._model.embedded, rows)(inputs) if self.shard.is_first else inputs
        for index, (kind, weights) in enumerate(zip(self._model.kind_of, self._model.layers, strict=True)):
            layer = self._capture(self._model.layer, rows, len(positions), room, kind)
            hidden = layer(hidden, ropes, weights, [cache[index] for cache in caches], kind, *bound)
        return hidden

    def _logits(self, hidden: Tensor, start: int, end: int) -> FloatArray:
        """Compute the logits of rows `start` to `end` of the hidden states, in captured numbers of rows."""
        rows, outputs = int(hidden.shape[0]), [NO_LOGITS]
        while start < end:
            count = ONE if end - start == ONE else min(SHORT, rows)
            first = min(start, rows - count)
            run = self._capture(self._model.logits, rows, count)
            found = run(hidden, Variable("first", 0, LONG).bind(first), count).numpy()
            outputs.append(np.array(found[start - first : end - first]))
            start = first + count
        return np.concatenate(outputs[1:] or outputs)

    def _capture(self, function: Callable[..., Any], *shape: int) -> Any:
        """Return the captured form of a function for a shape."""
        key: tuple[str | int, ...] = (function.__name__, *shape)
        if key not in self._captured:
            self._captured[key] = TinyJit(function)
        return self._captured[key]

    def _bound(self, position: int, index: int = 0) -> UOp:
        """Bind a position to a variable, so that kernels are compiled once for all. Each slot of a pass has its own."""
        return Variable(f"position{index}", 0, self.architecture.context_length + LONG).bind(position)

    def _tensor(self, inputs: np.ndarray) -> Tensor:
        return Tensor(inputs.astype(np.int32 if self.shard.is_first else np.float32)).realize()

    def _ropes(self, positions: Sequence[int]) -> list[Tensor]:
        """Compute the rotations of rows at these positions, for each rope: (2, rows, dims / 2), cosines, then sines."""
        at = np.array(positions)
        return [Tensor(np.stack(rotations(rope, at))).realize() for rope in self._model.ropes]


def passes(rows: Sequence[int], capacities: Sequence[int]) -> Iterator[list[int]]:
    """Group the chunks of a batch, by index: longer chunks alone, single rows in groups of fixed sizes.

    The slots of a group have the same capacity, since a captured graph has fixed shapes.
    """
    single_rows: dict[int, list[int]] = {}
    for index, (count, room) in enumerate(zip(rows, capacities, strict=True)):
        if count > ONE:
            yield [index]
        else:
            single_rows.setdefault(room, []).append(index)
    for indices in single_rows.values():
        for size in GROUP_SIZES:
            while len(indices) >= size:
                yield indices[:size]
                del indices[:size]


def padded_rows(rows: int) -> int:
    """Count the rows of a chunk after its last piece is padded."""
    return sum(size for _, size in pieces(rows))


def pieces(rows: int) -> Iterator[tuple[int, int]]:
    """Cut a chunk of `rows` into (start, captured rows). The last piece may be longer than what is left."""
    start = 0
    while start < rows:
        left = rows - start
        size = ONE if left == ONE else LONG if left >= LONG else SHORT
        yield start, size
        start += size


def reserve(cache: list[Tensor], positions: int) -> None:
    """Replace a slot's tensors by longer ones, with the same content, if `positions` do not fit."""
    wanted = capacity(cache)
    while wanted < positions:
        wanted *= GROWTH
    missing = wanted - capacity(cache)
    if missing:
        for index, held in enumerate(cache):
            cache[index] = held.pad((None, None, (0, missing), None)).contiguous().realize()


def capacity(cache: list[Tensor]) -> int:
    """Return how many positions a slot's tensors have room for."""
    return int(cache[0].shape[2])
