"""A Llama with sliding windows, split at every cut with layer stubs. Run in a child process, since it imports mlx_lm.

Prints JSON: for each cut, the largest difference between the split and the unsplit model's logits relative to the
largest logit; and how many passes over the weights a ragged batch takes, with this model and with one without windows.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from cluster.shard import Shard, whole
from engines.engine import Chunk, FloatArray
from engines.mlx.engine import MlxEngine
from engines.random_weights import RandomWeights
from tests.support.engines import Ring, cut

LAYERS = 6
WINDOW = 4
FAMILY = "llama"
CHUNKS = ([1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12], [13], [14], [15, 16, 17])


PLAIN = {
    "model_type": FAMILY,
    "num_hidden_layers": LAYERS,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "max_position_embeddings": 128,
}
FULL_LAYERS = (0, 3)
WINDOWS = PLAIN | {
    "layer_types": ["full_attention" if layer in FULL_LAYERS else "sliding_attention" for layer in range(LAYERS)],
    "sliding_window": WINDOW,
}


def loaded(shard: Shard, settings: Mapping[str, Any] = MappingProxyType(WINDOWS)) -> MlxEngine:
    engine = MlxEngine()
    engine.read(shard, RandomWeights(settings))
    return engine


def logits(cuts: Sequence[int]) -> FloatArray:
    """Compute the logits of every chunk's last row: (chunks, vocab)."""
    ring = Ring([loaded(shard) for shard in cut("sliding", LAYERS, *cuts)])
    position, outputs = 0, []
    for chunk in CHUNKS:
        outputs.append(ring.step(0, position, chunk))
        position += len(chunk)
    return np.stack(outputs)


def passes(settings: Mapping[str, Any]) -> int:
    """Count how often the whole model runs for a batch of three chunks."""
    engine, calls = loaded(whole("ragged", LAYERS), settings), 0
    family = importlib.import_module(f"mlx_lm.models.{FAMILY}").Model
    run = family.__call__

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return run(*arguments, **options)

    family.__call__ = counted
    engine.forward([Chunk(slot, 0, np.ones(rows, np.int32), 1) for slot, rows in enumerate((1, 5, 1))])
    family.__call__ = run
    return calls


if __name__ == "__main__":
    unsplit = logits([])
    scale = float(np.abs(unsplit).max())
    differences = {layer: float(np.abs(logits([layer]) - unsplit).max()) / scale for layer in range(1, LAYERS)}
    report = {"differences": differences, "passes": {"windows": passes(WINDOWS), "plain": passes(PLAIN)}}
    sys.stdout.write(json.dumps(report))
