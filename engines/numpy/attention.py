"""Grouped-query attention in numpy, as a model's description has it, over a ragged batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engines.engine import Chunk, FloatArray
from engines.numpy.kv_cache import KVCache
from engines.numpy.linear import FEW_ROWS, Linear, RMSNorm
from engines.rope import rotations
from models.architecture import Architecture, Rope
from models.weights.reader import Weights


@dataclass(frozen=True, slots=True, eq=False)
class RaggedBatch:
    """A batch with all chunks' rows laid end to end: each chunk's cache and span of rows, and each row's rotations."""

    batch: Sequence[Chunk]
    caches: Sequence[KVCache]
    spans: Sequence[slice]
    rotations: Mapping[Rope | None, tuple[FloatArray, FloatArray]]
    """By rope, the cosines and sines: (rows, 1, dims / 2) each."""

    @classmethod
    def concatenate(cls, batch: Sequence[Chunk], caches: Sequence[KVCache], ropes: Sequence[Rope]) -> RaggedBatch:
        """Lay the chunks' rows end to end."""
        ends = np.cumsum([chunk.rows for chunk in batch]).tolist()
        spans = [slice(end - chunk.rows, end) for chunk, end in zip(batch, ends, strict=True)]
        positions = np.concatenate([np.arange(c.position, c.position + c.rows) for c in batch])
        tables = {rope: rotations(rope, positions) for rope in ropes}
        return cls(batch, caches, spans, {rope: (cos[:, None], sin[:, None]) for rope, (cos, sin) in tables.items()})


class Attention:
    """The attention of one layer; q, k and v are one product."""

    def __init__(self, architecture: Architecture, layer: int, weights: Weights) -> None:
        self._spec = spec = architecture.layers[layer].attention
        prefix = f"model.layers.{layer}.self_attn"
        self.qkv_proj = Linear.stacked(weights, *(f"{prefix}.{part}_proj" for part in "qkv"), bias=spec.qkv_bias)
        self.o_proj = Linear.stacked(weights, f"{prefix}.o_proj", bias=spec.out_bias)
        norms = [f"{prefix}.{part}_norm.weight" for part in "qk" if spec.qk_norm]
        offset = np.float32(architecture.norm_offset)
        self._norms = [RMSNorm(weights.tensor(name) + offset, architecture.norm_eps) for name in norms]
        # (kv_heads, heads that share one, 1)
        self._sinks = weights.tensor(f"{prefix}.sinks").reshape(spec.kv_heads, -1, 1) if spec.sinks else None

    def __call__(self, rows: FloatArray, ragged: RaggedBatch, index: int) -> FloatArray:
        """Attend from normed hidden states (rows, hidden). `index` counts the shard's layers from 0."""
        spec = self._spec
        heads = self.qkv_proj(rows).reshape(len(rows), -1, spec.head_dim)
        rotated = spec.heads + spec.kv_heads
        for norm, part in zip(self._norms, (slice(0, spec.heads), slice(spec.heads, rotated)), strict=False):
            heads[:, part] = norm(heads[:, part].reshape(-1, spec.head_dim)).reshape(len(rows), -1, spec.head_dim)
        if spec.rope is not None:
            rotate(heads[:, :rotated, : spec.rope.dims], *ragged.rotations[spec.rope])
        mixed = np.empty((len(rows), spec.heads * spec.head_dim), np.float32)
        for chunk, cache, span in zip(ragged.batch, ragged.caches, ragged.spans, strict=True):
            queries, keys, values = np.split(heads[span], (spec.heads, rotated), axis=1)
            mixed[span] = self._attend(queries, *cache.store(index, chunk.position, keys, values))
        return self.o_proj(mixed)

    def _attend(self, queries: FloatArray, keys: FloatArray, values: FloatArray) -> FloatArray:
        """Attend one by one from a few rows, each over the keys before it, so that each has the bits it has alone."""
        rows, before = len(queries), keys.shape[1] - len(queries)
        if not 1 < rows <= FEW_ROWS:
            return self._attend_together(queries, keys, values)
        ends = range(before + 1, before + rows + 1)
        return np.concatenate(
            [self._attend_together(queries[at : at + 1], keys[:, :end], values[:, :end]) for at, end in enumerate(ends)]
        )

    def _attend_together(self, queries: FloatArray, keys: FloatArray, values: FloatArray) -> FloatArray:
        """Attend from (rows, heads, head_dim) over (kv_heads, length, head_dim). Returns (rows, heads * head_dim)."""
        rows, spec = len(queries), self._spec
        if spec.window is not None:  # what no row sees
            unseen = max(0, keys.shape[1] - rows + 1 - spec.window)
            keys, values = keys[:, unseen:], values[:, unseen:]
        # Heads that share a key head are adjacent, so that their rows are one product.
        grouped = queries.reshape(rows, spec.kv_heads, -1, spec.head_dim).transpose(1, 2, 0, 3)
        grouped = grouped.reshape(spec.kv_heads, -1, spec.head_dim) * np.float32(spec.scale)
        scores = np.matmul(grouped, keys.swapaxes(1, 2))
        if spec.softcap is not None:
            scores = np.tanh(scores / np.float32(spec.softcap)) * np.float32(spec.softcap)
        if rows > 1:
            hidden = hidden_from(rows, keys.shape[1], spec.window)
            scores.reshape(spec.kv_heads, -1, rows, keys.shape[1])[:, :, hidden] = -np.inf
        softmax(scores, None if self._sinks is None else self._sinks.repeat(rows, 2).reshape(spec.kv_heads, -1, 1))
        mixed: FloatArray = np.matmul(scores, values).reshape(spec.kv_heads, -1, rows, spec.head_dim)
        return mixed.transpose(2, 0, 1, 3).reshape(rows, -1)


def hidden_from(rows: int, length: int, window: int | None) -> np.ndarray:
    """Say which of `length` positions the last `rows` of them do not see: (rows, length) of bool."""
    every = np.ones((rows, length), np.bool_)
    future = np.triu(every, length - rows + 1)
    return future if window is None else future | np.tril(every, length - rows - window)


def rotate(heads: FloatArray, cosines: FloatArray, sines: FloatArray) -> None:
    """Rotate (rows, heads, dims) in place, in the planes of dimensions i and i + dims / 2."""
    half = heads.shape[-1] // 2
    first, second = heads[..., :half].copy(), heads[..., half:]
    heads[..., :half] = first * cosines - second * sines
    heads[..., half:] = second * cosines + first * sines


def softmax(scores: FloatArray, sinks: FloatArray | None = None) -> None:
    """Apply the softmax over the last axis in place. `sinks` (..., 1) are logits that take a part and get no place."""
    largest = scores.max(axis=-1, keepdims=True)
    if sinks is not None:
        largest = np.maximum(largest, sinks)
    scores -= largest
    np.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    scores /= total if sinks is None else total + np.exp(sinks - largest)
