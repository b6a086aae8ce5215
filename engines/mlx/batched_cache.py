"""One layer's caches of several slots, presented to mlx-lm's layers as the cache of one batch. Holds no keys itself.

To the model every row of a ragged batch is a sequence of one row, and all that it computes but attention goes by the
row. Attention runs slot by slot, each over its own cache, so nothing is padded, masked or copied.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from engines.engine import Chunk

ATTENTION = "scaled_dot_product_attention"
"""The function of mlx-lm that all its families import under this name."""


class BatchedCache:
    """A layer's view of the slots in a batch. `offset` holds each row's position, which rope accepts as an array."""

    def __init__(self, caches: Sequence[Any], edges: Sequence[int], offset: mx.array) -> None:
        self.offset = offset
        self._caches = caches
        self._edges = edges

    def make_mask(self, rows: int, return_array: bool = False, window_size: int | None = None) -> None:
        """Return None, as for any single row. Raises NotImplementedError for a family that needs a mask array."""
        if return_array or window_size is not None:
            raise NotImplementedError("a batched pass has no masks")

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[list[mx.array], list[mx.array]]:
        """Append each slot's rows of (all rows, kv_heads, 1, head_dim). Returns what each slot holds then."""
        parts = zip(self._caches, self.by_slot(keys), self.by_slot(values), strict=True)
        held = [cache.update_and_fetch(key, value) for cache, key, value in parts]
        return [key for key, _ in held], [value for _, value in held]

    def by_slot(self, heads: mx.array) -> Iterator[mx.array]:
        """Split (all rows, heads, 1, head_dim) into one (1, heads, rows, head_dim) for each slot."""
        return (heads[start:end].swapaxes(0, 2) for start, end in pairwise(self._edges))


def batch_caches(chunks: Sequence[Chunk], caches: Sequence[list[Any]]) -> list[BatchedCache]:
    """Make the batched cache of each layer, for chunks with their rows laid end to end."""
    edges = [0, *accumulate(chunk.rows for chunk in chunks)]
    positions = [np.arange(chunk.position, chunk.position + chunk.rows, dtype=np.int32) for chunk in chunks]
    offset = mx.array(np.concatenate(positions))
    return [BatchedCache(layer, edges, offset) for layer in zip(*caches, strict=True)]


def patch_attention() -> None:
    """Make every mlx-lm family imported so far attend over a `BatchedCache`; other caches work as before."""
    patched = _slot_by_slot(getattr(importlib.import_module("mlx_lm.models.base"), ATTENTION))
    for name, module in list(sys.modules.items()):
        found = getattr(module, ATTENTION, None) if name.startswith("mlx_lm.models.") else None
        if found is not None and not hasattr(found, "original"):
            setattr(module, ATTENTION, patched)


def _slot_by_slot(attention: Any) -> Callable[..., mx.array]:
    """Wrap mlx-lm's attention function, or the original of one that is wrapped already."""
    original = getattr(attention, "original", attention)

    def patched(
        queries: mx.array, keys: Any, values: Any, cache: Any, scale: float, mask: Any, **options: Any
    ) -> mx.array:
        if not isinstance(cache, BatchedCache):
            output: mx.array = original(queries, keys, values, cache=cache, scale=scale, mask=mask, **options)
            return output
        if mask is not None:
            raise NotImplementedError("a batched pass has no masks")
        outputs = []
        for query, key, value in zip(cache.by_slot(queries), keys, values, strict=True):
            causal = "causal" if query.shape[2] > 1 else None
            outputs.append(original(query, key, value, cache=None, scale=scale, mask=causal, **options))
        return mx.concatenate([output.swapaxes(0, 2) for output in outputs])

    patched.original = original  # type: ignore[attr-defined]
    return patched
