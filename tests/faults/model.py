"""The model of the fault runs, a tiny real Llama with a text that does not end, and keys that choose its placer.

The numpy engine computes it, so that a text does not depend on what else is computed at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bus.net.keys import KeyPair, new_key_pair
from cluster.placement import placer_of
from tests.support.models import write_tiny_llama

MODEL = "endless"
LAYERS, HIDDEN, CONTEXT = 6, 64, 4096
STREAM_TOKENS = 1200
ANSWER_TOKENS = 8
STORY: dict[str, Any] = {
    "model": MODEL,
    "stream": True,
    "temperature": 0.8,
    "top_k": 20,
    "seed": 7,
    "max_tokens": STREAM_TOKENS,
    "messages": [{"role": "user", "content": "tell"}],
}
QUESTION: dict[str, Any] = {
    "model": MODEL,
    "temperature": 0,
    "max_tokens": ANSWER_TOKENS,
    "messages": [{"role": "user", "content": "the ring"}],
}
CARD = f"""
id = "{MODEL}"
name = "A tiny model with a text that does not end"
family = "llama"
n_layers = {LAYERS}
hidden_size = {HIDDEN}
n_heads = 4
n_kv_heads = 2
head_dim = {HIDDEN // 4}
vocab_size = 264
context_length = {CONTEXT}
layer_bytes = {10 * HIDDEN * HIDDEN * 4}
embedding_bytes = {264 * HIDDEN * 4}
size_bytes = {(LAYERS * 10 * HIDDEN + 264) * HIDDEN * 4}

[source]
kind = "folder"
path = "weights"
"""


def write_model(folder: Path) -> Path:
    """Write the model and its card, and return the folder of the card."""
    folder.mkdir()
    write_tiny_llama(folder / "weights", n_layers=LAYERS, hidden=HIDDEN, context=CONTEXT, printable=True)
    (folder / f"{MODEL}.toml").write_text(CARD)
    return folder


def keys_of_nodes(count: int, placer: int) -> Sequence[KeyPair]:
    """Make the keys of so many nodes, of which the one with the index `placer` places the model."""
    while True:
        pairs = [new_key_pair() for _ in range(count)]
        if placer_of(MODEL, [pair.node_id for pair in pairs]) == pairs[placer].node_id:
            return pairs
