"""One layer's caches of several slots, seen by mlx-lm's layers as the cache of one batch. Holds no keys itself.

Every row of a ragged batch is a sequence of one row to the model: all it does but attention goes by the row. Attention
goes slot by slot, each over its own cache, so there is no padding, no mask and no copy of what slots hold.
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
"""The function of mlx-lm that all its families import by this name."""


class BatchedCache:
    """What a layer sees of the slots in a batch. `offset` is each row's position, which rope takes as an array."""

    def __init__(self, caches: Sequence[Any], edges: Sequence[int], offset: mx.array) -> None:
        self.offset = offset
        self._caches = caches
        self._edges = edges

    def make_mask(self, rows: int, return_array: bool = False, window_size: int | None = None) -> None:
        """None, as for any single row. NotImplementedError for a family that wants more than causality."""
        if return_array or window_size is not None:
            raise NotImplementedError("a shared pass has no masks")

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[list[mx.array], list[mx.array]]:
        """Give each slot its rows of (all rows, kv_heads, 1, head_dim); answer what each holds then."""
        parts = zip(self._caches, self.by_slot(keys), self.by_slot(values), strict=True)
        held = [cache.update_and_fetch(key, value) for cache, key, value in parts]
        return [key for key, _ in held], [value for _, value in held]

    def by_slot(self, heads: mx.array) -> Iterator[mx.array]:
        """Rows (all rows, heads, 1, head_dim) as one (1, heads, rows, head_dim) for each slot."""
        return (heads[start:end].swapaxes(0, 2) for start, end in pairwise(self._edges))


def share(chunks: Sequence[Chunk], caches: Sequence[list[Any]]) -> list[BatchedCache]:
    """The shared cache of each layer, for chunks whose rows lie end to end."""
    edges = [0, *accumulate(chunk.rows for chunk in chunks)]
    places = [np.arange(chunk.position, chunk.position + chunk.rows, dtype=np.int32) for chunk in chunks]
    offset = mx.array(np.concatenate(places))
    return [BatchedCache(layer, edges, offset) for layer in zip(*caches, strict=True)]


def patch_attention() -> None:
    """Let every family of mlx-lm that is imported by now attend over a `BatchedCache`; other caches go as before."""
    taught = _slot_by_slot(getattr(importlib.import_module("mlx_lm.models.base"), ATTENTION))
    for name, module in list(sys.modules.items()):
        known = getattr(module, ATTENTION, None) if name.startswith("mlx_lm.models.") else None
        if known is not None and not hasattr(known, "plain"):
            setattr(module, ATTENTION, taught)


def _slot_by_slot(plain: Any) -> Callable[..., mx.array]:
    plain = getattr(plain, "plain", plain)

    def attention(
        queries: mx.array, keys: Any, values: Any, cache: Any, scale: float, mask: Any, **options: Any
    ) -> mx.array:
        if not isinstance(cache, BatchedCache):
            answer: mx.array = plain(queries, keys, values, cache=cache, scale=scale, mask=mask, **options)
            return answer
        if mask is not None:
            raise NotImplementedError("a shared pass has no masks")
        parts = zip(cache.by_slot(queries), keys, values, strict=True)
        answers = [plain(*part, cache=None, scale=scale, mask=_causal(part[0]), **options) for part in parts]
        return mx.concatenate([answer.swapaxes(0, 2) for answer in answers])

    attention.plain = plain  # type: ignore[attr-defined]
    return attention


def _causal(queries: mx.array) -> str | None:
    return "causal" if queries.shape[2] > 1 else None
