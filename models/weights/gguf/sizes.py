"""The sizes of a GGUF file of any architecture, described or not. Reads no tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from gguf import Keys

from cluster.shard import Shard
from models.errors import WeightsError
from models.sizes import ShardSizes
from models.weights.gguf.header import GgufHeader

HALF = 2
"""The bytes of a number in llama.cpp's keys and values."""


class GgufSizes(msgspec.Struct, frozen=True):
    """What a file says of its model.

    `heads`, `kv_heads` and `kv_widths`, the numbers that a position's key and value take, are those of each layer.
    `window` is how many positions some layers attend to, or 0.
    """

    architecture: str
    n_layers: int
    hidden_size: int
    vocab_size: int
    context_length: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    kv_widths: tuple[int, ...]
    window: int

    def of(self, shard: Shard) -> ShardSizes:
        """Return the sizes of a shard: hidden states are float32, and keys and values float16."""
        position_bytes = HALF * sum(self.kv_widths[shard.start_layer : shard.end_layer])
        return ShardSizes(self.hidden_size, self.vocab_size, self.context_length, "float32", position_bytes)


def gguf_sizes(header: GgufHeader, path: Path) -> GgufSizes:
    """Read the sizes. Raises WeightsError for a file that is no whole model."""
    metadata = header.metadata
    architecture = metadata.get(Keys.General.ARCHITECTURE)
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or not isinstance(architecture, str) or metadata.get(Keys.Split.LLM_KV_SPLIT_COUNT, 0) > 1:
        raise WeightsError(f"{path} holds no whole model; fetch a single-file GGUF of it")
    try:
        n_layers = int(_value(metadata, Keys.LLM.BLOCK_COUNT, architecture))
        heads = _of_layers(_value(metadata, Keys.Attention.HEAD_COUNT, architecture), n_layers)
        kv_heads = _of_layers(metadata.get(Keys.Attention.HEAD_COUNT_KV.format(arch=architecture), heads), n_layers)
        width = _kv_width(metadata, architecture, heads[0])
        context = int(_value(metadata, Keys.LLM.CONTEXT_LENGTH, architecture))
        window = int(metadata.get(Keys.Attention.SLIDING_WINDOW.format(arch=architecture), 0))
    except (KeyError, TypeError, ValueError, ZeroDivisionError, IndexError) as error:
        raise WeightsError(f"{path} does not say its own sizes ({error!r}); fetch the model again") from error
    vocabulary, hidden = embedding.shape
    widths = tuple(count * width for count in kv_heads)
    return GgufSizes(architecture, n_layers, hidden, vocabulary, context, heads, kv_heads, widths, window)


def _kv_width(metadata: Mapping[str, Any], architecture: str, heads: int) -> int:
    """Count the numbers of a head's key and value. Its size is that of the hidden states by the heads, unless given."""
    even = int(_value(metadata, Keys.LLM.EMBEDDING_LENGTH, architecture)) // heads
    key, value = (
        int(metadata.get(name.format(arch=architecture), even))
        for name in (Keys.Attention.KEY_LENGTH, Keys.Attention.VALUE_LENGTH)
    )
    return key + value


def _of_layers(value: Any, n_layers: int) -> tuple[int, ...]:
    """Return one number for each layer, of one for all or a list. Raises ValueError for a list of another length."""
    found = tuple(int(one) for one in value) if isinstance(value, list | tuple) else (int(value),) * n_layers
    if len(found) != n_layers:
        raise ValueError(f"{len(found)} numbers for {n_layers} layers")
    return found


def _value(metadata: Mapping[str, Any], key: str, architecture: str) -> Any:
    return metadata[key.format(arch=architecture)]
