"""The numpy engine's cache returns what was stored, in order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engines.numpy.kv_cache import KVCache


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_cache_returns_what_was_stored(rows: list[int]) -> None:
    cache, random = KVCache(2, 3, sum(rows), 4), np.random.default_rng(0)
    stored = random.standard_normal((sum(rows), 3, 4), np.float32)
    position = 0
    for count in rows:
        part = stored[position : position + count]
        for layer in (0, 1):
            keys, values = cache.store(layer, position, part, -part)
        position += count
        np.testing.assert_array_equal(keys, stored[:position].swapaxes(0, 1))
        np.testing.assert_array_equal(values, -keys)
