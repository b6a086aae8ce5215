"""The Llama family in numpy: the part of a model that one shard owns. Knows no slots.

Everything is float32; between layers the hidden states are rounded to the model's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cluster.shard import Shard
from engines.activations import rounded
from engines.engine import NO_LOGITS, Chunk, FloatArray, SavedKV
from engines.logits import split_logits, wanted_rows
from engines.numpy.kv_cache import KVCache
from engines.rope import frequencies
from models.config import ModelConfig
from models.weights.reader import Weights

FEW_ROWS = 5
"""Up to this many rows go through products and attention one by one; see `project`."""


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A matrix (outputs, inputs), which may stack several of the checkpoint, and its bias (outputs,)."""

    weight: FloatArray
    bias: FloatArray | None

    @classmethod
    def stacked(cls, weights: Weights, *names: str) -> Linear:
        """Stack the named checkpoint matrices, so that one product has their outputs side by side."""
        matrices = [weights.tensor(f"{name}.weight") for name in names]
        weight = np.concatenate(matrices) if len(matrices) > 1 else matrices[0]
        held = weights.names()
        biased = [f"{name}.bias" for name in names if f"{name}.bias" in held]
        return cls(weight, np.concatenate([weights.tensor(name) for name in biased]) if biased else None)

    def __call__(self, rows: FloatArray) -> FloatArray:
        product = project(rows, self.weight)
        if self.bias is not None:
            product += self.bias
        return product


@dataclass(frozen=True, slots=True, eq=False)
class RMSNorm:
    """RMSNorm (Zhang and Sennrich, "Root mean square layer normalization", 2019)."""

    weight: FloatArray
    eps: float

    def __call__(self, rows: FloatArray) -> FloatArray:
        mean_square = np.einsum("ij,ij->i", rows, rows)[:, None] / np.float32(rows.shape[1])
        return np.asarray(rows * (self.weight / np.sqrt(mean_square + np.float32(self.eps))), np.float32)


class Attention:
    """Grouped-query attention; q, k and v are one product."""

    def __init__(self, config: ModelConfig, weights: Weights, prefix: str) -> None:
        self._heads, self._kv_heads, self._head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self._scale = np.float32(config.head_dim**-0.5)
        self.qkv_proj = Linear.stacked(weights, *(f"{prefix}.{part}_proj" for part in "qkv"))
        self.o_proj = Linear.stacked(weights, f"{prefix}.o_proj")

    def __call__(self, rows: FloatArray, ragged: RaggedBatch, index: int) -> FloatArray:
        """Attend from normed hidden states (rows, hidden). `index` counts the shard's layers from 0."""
        heads = self.qkv_proj(rows).reshape(len(rows), -1, self._head_dim)
        rotated = self._heads + self._kv_heads
        rotate(heads[:, :rotated], ragged.cosines, ragged.sines)
        mixed = np.empty((len(rows), self._heads * self._head_dim), np.float32)
        for chunk, cache, span in zip(ragged.batch, ragged.caches, ragged.spans, strict=True):
            queries, keys, values = np.split(heads[span], (self._heads, rotated), axis=1)
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
        rows, kv_heads = len(queries), self._kv_heads
        # Heads that share a key head are adjacent, so that their rows are one product.
        grouped = queries.reshape(rows, kv_heads, -1, self._head_dim).transpose(1, 2, 0, 3)
        grouped = grouped.reshape(kv_heads, -1, self._head_dim) * self._scale
        scores = np.matmul(grouped, keys.swapaxes(1, 2))
        if rows > 1:
            length = keys.shape[1]
            future = np.triu(np.ones((rows, length), np.bool_), length - rows + 1)
            scores.reshape(kv_heads, -1, rows, length)[:, :, future] = -np.inf
        softmax(scores)
        mixed: FloatArray = np.matmul(scores, values).reshape(kv_heads, -1, rows, self._head_dim)
        return mixed.transpose(2, 0, 1, 3).reshape(rows, -1)


class MLP:
    """The gated feed-forward network; gate and up are one product."""

    def __init__(self, weights: Weights, prefix: str) -> None:
        self.gate_up_proj = Linear.stacked(weights, f"{prefix}.gate_proj", f"{prefix}.up_proj")
        self.down_proj = Linear.stacked(weights, f"{prefix}.down_proj")

    def __call__(self, rows: FloatArray) -> FloatArray:
        gate, up = np.split(self.gate_up_proj(rows), 2, axis=1)
        return self.down_proj(silu(gate) * up)


class Layer:
    """One transformer block."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        prefix, eps = f"model.layers.{layer}", config.rms_norm_eps
        self.input_layernorm = RMSNorm(weights.tensor(f"{prefix}.input_layernorm.weight"), eps)
        self.self_attn = Attention(config, weights, f"{prefix}.self_attn")
        self.post_attention_layernorm = RMSNorm(weights.tensor(f"{prefix}.post_attention_layernorm.weight"), eps)
        self.mlp = MLP(weights, f"{prefix}.mlp")

    def __call__(self, rows: FloatArray, ragged: RaggedBatch, index: int) -> FloatArray:
        """Compute the hidden states (rows, hidden) after this block, as a new array."""
        rows = rows + self.self_attn(self.input_layernorm(rows), ragged, index)
        rows += self.mlp(self.post_attention_layernorm(rows))
        return rows


@dataclass(frozen=True, slots=True, eq=False)
class RaggedBatch:
    """A batch with all chunks' rows laid end to end: each chunk's cache and span of rows, and each row's rotation."""

    batch: Sequence[Chunk]
    caches: Sequence[KVCache]
    spans: Sequence[slice]
    cosines: FloatArray  # (rows, 1, head_dim / 2)
    sines: FloatArray

    @classmethod
    def concatenate(cls, batch: Sequence[Chunk], caches: Sequence[KVCache], frequencies: FloatArray) -> RaggedBatch:
        """Lay the chunks' rows end to end."""
        ends = np.cumsum([chunk.rows for chunk in batch]).tolist()
        spans = [slice(end - chunk.rows, end) for chunk, end in zip(batch, ends, strict=True)]
        positions = np.concatenate([np.arange(c.position, c.position + c.rows) for c in batch])
        angles = positions[:, None, None].astype(np.float32) * frequencies
        return cls(batch, caches, spans, np.cos(angles), np.sin(angles))


class NumpyLlama:
    """The layers of one shard, with the embedding, final norm and head if the shard has them."""

    def __init__(self, config: ModelConfig, shard: Shard, weights: Weights) -> None:
        self.config = config
        self.shard = shard
        self._frequencies = frequencies(config)
        tied = config.tie_word_embeddings
        if shard.is_first or (shard.is_last and tied):
            self.embed_tokens = weights.tensor("model.embed_tokens.weight")
        self.layers = [Layer(config, weights, layer) for layer in shard.layers]
        if shard.is_last:
            self.norm = RMSNorm(weights.tensor("model.norm.weight"), config.rms_norm_eps)
            self.lm_head = self.embed_tokens if tied else weights.tensor("lm_head.weight")

    def forward(self, batch: Sequence[Chunk], caches: Sequence[KVCache]) -> list[FloatArray]:
        """Compute each chunk's hidden states (rows, hidden), or on the last stage its logits (logits, vocab)."""
        ragged = RaggedBatch.concatenate(batch, caches, self._frequencies)
        inputs = np.concatenate([chunk.inputs for chunk in batch])
        rows: FloatArray = self.embed_tokens[inputs] if self.shard.is_first else inputs.astype(np.float32)
        for index, layer in enumerate(self.layers):
            rows = rounded(layer(rows, ragged, index), self.config.dtype)
        if not self.shard.is_last:
            return [rows[span] for span in ragged.spans]
        wanted = wanted_rows(batch)
        if not len(wanted):
            return [NO_LOGITS] * len(batch)
        return split_logits(project(self.norm(rows[wanted]), self.lm_head), batch)

    def new_cache(self) -> KVCache:
        """Make an empty cache for one slot."""
        config = self.config
        return KVCache(len(self.layers), config.n_kv_heads, config.context_length, config.head_dim)

    def truncate(self, cache: KVCache, position: int) -> None:
        """Do nothing: what lies after a slot's end is overwritten before it is read."""

    def save(self, cache: KVCache, start: int, end: int) -> SavedKV:
        """Copy positions that the cache holds."""
        return cache.save(start, end)

    def restore(self, cache: KVCache, saved: SavedKV) -> None:
        """Append a copy."""
        cache.restore(saved)

    def release(self, cache: KVCache) -> None:
        """Do nothing: the memory is freed with the cache."""


def project(rows: FloatArray, weight: FloatArray) -> FloatArray:
    """Multiply (rows, inputs) with the transpose of (outputs, inputs). Returns (rows, outputs).

    A few rows are multiplied one by one: a matrix-vector product reads the weights at the speed of memory, while
    OpenBLAS's matrix product packs them first, which is worth it from about eight rows on. This also gives each row the
    same bits that it has alone.
    """
    if 1 < len(rows) <= FEW_ROWS:
        return np.stack([weight @ row for row in rows])
    return np.asarray(rows @ weight.T)


def rotate(heads: FloatArray, cosines: FloatArray, sines: FloatArray) -> None:
    """Rotate (rows, heads, head_dim) in place, in the planes of dimensions i and i + head_dim / 2."""
    half = heads.shape[-1] // 2
    first, second = heads[..., :half].copy(), heads[..., half:]
    heads[..., :half] = first * cosines - second * sines
    heads[..., half:] = second * cosines + first * sines


def silu(gate: FloatArray) -> FloatArray:
    """Compute x * sigmoid(x) by tanh, since exp could overflow and warn."""
    return np.asarray(gate * (0.5 * (1 + np.tanh(0.5 * gate))), np.float32)


def softmax(scores: FloatArray) -> None:
    """Apply the softmax over the last axis in place."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
