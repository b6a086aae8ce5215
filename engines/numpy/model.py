"""A model in numpy, built from its description: the part that one shard owns. Knows no slots and no families.

Everything is float32; between layers the hidden states are rounded to the model's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cluster.shard import Shard
from engines.activations import rounded
from engines.engine import NO_LOGITS, Chunk, FloatArray, SavedKV
from engines.logits import split_logits, wanted_rows
from engines.numpy.attention import Attention, RaggedBatch
from engines.numpy.feed_forward import feed_forward
from engines.numpy.kv_cache import KVCache
from engines.numpy.linear import RMSNorm, project
from models.architecture import Architecture
from models.sizes import shard_sizes
from models.weights.checkpoint import EMBEDDING, FINAL_NORM, HEAD
from models.weights.reader import Weights


class Layer:
    """One transformer block."""

    def __init__(self, architecture: Architecture, index: int, weights: Weights) -> None:
        spec, prefix = architecture.layers[index], f"model.layers.{index}"
        self._residual_scale = np.float32(architecture.residual_scale)
        self._attention = Attention(architecture, index, weights)
        self._feed_forward = feed_forward(spec.feed_forward, weights, f"{prefix}.mlp")
        names = ["input_layernorm", "post_attention_layernorm"]
        names += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if spec.post_norms else []
        norms = [norm(architecture, weights, f"{prefix}.{name}.weight") for name in names]
        self._before, self._after = (norms[::2], norms[1::2]) if spec.post_norms else (norms, [])

    def __call__(self, rows: FloatArray, ragged: RaggedBatch, index: int) -> FloatArray:
        """Compute the hidden states (rows, hidden) after this block, as a new array."""
        rows = rows + self._added(self._attention(self._before[0](rows), ragged, index), 0)
        rows += self._added(self._feed_forward(self._before[1](rows)), 1)
        return rows

    def _added(self, rows: FloatArray, part: int) -> FloatArray:
        """Return what one of the two parts adds, from its output."""
        if self._after:
            rows = self._after[part](rows)
        return rows if self._residual_scale == 1 else rows * self._residual_scale


class NumpyModel:
    """The layers of one shard, with the embedding, final norm and head if the shard has them."""

    def __init__(self, architecture: Architecture, shard: Shard, weights: Weights) -> None:
        self.architecture = architecture
        self.shard = shard
        self.sizes = shard_sizes(architecture, shard)
        layers = [architecture.layers[index] for index in shard.layers]
        self._ropes = list({layer.attention.rope for layer in layers if layer.attention.rope is not None})
        tied = architecture.tied_embedding
        if shard.is_first or (shard.is_last and tied):
            self._embedding = weights.tensor(EMBEDDING)
        self._layers = [Layer(architecture, index, weights) for index in shard.layers]
        if shard.is_last:
            self._norm = norm(architecture, weights, FINAL_NORM)
            self._head = self._embedding if tied else weights.tensor(HEAD)

    def forward(self, batch: Sequence[Chunk], caches: Sequence[KVCache]) -> list[FloatArray]:
        """Compute each chunk's hidden states (rows, hidden), or on the last stage its logits (logits, vocab)."""
        ragged = RaggedBatch.concatenate(batch, caches, self._ropes)
        inputs = np.concatenate([chunk.inputs for chunk in batch])
        rows = self._embedded(inputs) if self.shard.is_first else inputs.astype(np.float32)
        for index, layer in enumerate(self._layers):
            rows = rounded(layer(rows, ragged, index), self.architecture.dtype)
        if not self.shard.is_last:
            return [rows[span] for span in ragged.spans]
        wanted = wanted_rows(batch)
        if not len(wanted):
            return [NO_LOGITS] * len(batch)
        return split_logits(self._logits(rows[wanted]), batch)

    def new_cache(self) -> KVCache:
        """Make an empty cache for one slot."""
        heads = self.architecture.heads
        return KVCache(len(self._layers), heads.kv_heads, self.architecture.context_length, heads.head_dim)

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

    def _embedded(self, tokens: np.ndarray) -> FloatArray:
        rows: FloatArray = self._embedding[tokens]
        scale = np.float32(self.architecture.embedding_scale)
        return rows if scale == 1 else rows * scale

    def _logits(self, rows: FloatArray) -> FloatArray:
        """Compute the logits (rows, vocab) of hidden states (rows, hidden)."""
        logits = project(self._norm(rows), self._head)
        scale, cap = np.float32(self.architecture.logit_scale), self.architecture.logit_softcap
        if scale != 1:
            logits *= scale
        return logits if cap is None else np.tanh(logits / np.float32(cap)) * np.float32(cap)


def norm(architecture: Architecture, weights: Weights, name: str) -> RMSNorm:
    """Read a norm of the model."""
    return RMSNorm(weights.tensor(name) + np.float32(architecture.norm_offset), architecture.norm_eps)
