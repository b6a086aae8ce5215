"""How many rows of a chunk a loaded shard computes with the bits that each alone would get.

That depends on the kernels that llama.cpp has for the processor and for the types of the weights: sums of 8-bit
products are exact, those of float32 are not. So it is measured on the shard itself, if one thread of a CPU computes.
Several threads divide the positions that a lone row attends to, from 512 cells on, so its sums have another order than
those of a chunk; and which kernels a GPU takes for many positions is not known.
"""

from __future__ import annotations

import numpy as np

from engines.engine import Chunk, FloatArray
from engines.llamacpp.shard_model import LlamaCppShardModel, SlotCache
from engines.threads import threads

SIZES = (2, 3, 4, 6, 9)
"""The sizes that are tried, up to the first that differs: the last is a token with the most drafts of a ring."""


def can_be_exact(device: str) -> bool:
    """Return whether rows of a chunk can have the bits of each alone. If not, one row is exact."""
    return device == "CPU" and threads() == 1


def exact_rows(model: LlamaCppShardModel) -> int:
    """Compute random rows as a chunk of each size and alone. Returns the largest size that gives the same bits."""
    inputs, exact = _inputs(model), 1
    cache, chunks = model.new_cache(), model.new_cache()
    alone: list[FloatArray] = []
    for size in SIZES:
        alone += [_run(model, cache, inputs, row, row + 1) for row in range(len(alone), size)]
        together = _run(model, chunks, inputs, 0, size)
        model.truncate(chunks, 0)
        if together.tobytes() != np.concatenate(alone).tobytes():
            break
        exact = size
    model.release(cache)
    model.release(chunks)
    return exact


def _run(model: LlamaCppShardModel, cache: SlotCache, inputs: np.ndarray, start: int, end: int) -> FloatArray:
    chunk = Chunk(0, start, inputs[start:end], end - start if model.shard.is_last else 0)
    return model.forward([chunk], [cache])[0]


def _inputs(model: LlamaCppShardModel) -> np.ndarray:
    random = np.random.default_rng(0)
    if model.shard.is_first:
        return random.integers(0, model.sizes.vocab_size, SIZES[-1]).astype(np.int32)
    return random.standard_normal((SIZES[-1], model.sizes.hidden_size), np.float32)
