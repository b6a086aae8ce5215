"""The sizes of a GGUF file of any architecture, described or not. Reads no tensor."""

from __future__ import annotations

from pathlib import Path

import msgspec
from gguf import Keys

from cluster.shard import Shard
from models.errors import WeightsError
from models.families.parts import MOST_LAYERS
from models.settings import LARGEST_COUNT, Settings
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
    """Read the sizes. Raises WeightsError for a file that is no whole model, and for sizes that no model has."""
    metadata = header.metadata
    architecture = metadata.get(Keys.General.ARCHITECTURE)
    embedding = header.tensors.get("token_embd.weight")
    is_part = metadata.get(Keys.Split.LLM_KV_SPLIT_COUNT, 0) not in (0, 1)
    if embedding is None or len(embedding.shape) != 2 or not isinstance(architecture, str) or is_part:
        raise WeightsError(f"{path} holds no whole model; fetch a single-file GGUF of it")
    vocabulary, hidden = embedding.shape
    said = Settings(metadata, str(path))

    def key(name: str) -> str:
        return name.format(arch=architecture)

    n_layers = said.count(key(Keys.LLM.BLOCK_COUNT), most=MOST_LAYERS)
    context = said.count(key(Keys.LLM.CONTEXT_LENGTH))
    heads = _numbers(said, key(Keys.Attention.HEAD_COUNT), n_layers)
    if not heads[0]:
        raise said.unusable(key(Keys.Attention.HEAD_COUNT))
    kv_heads = _numbers(said, key(Keys.Attention.HEAD_COUNT_KV), n_layers, heads)
    # The size of a head is that of the hidden states by the heads, unless it is given.
    even, rest = divmod(said.count(key(Keys.LLM.EMBEDDING_LENGTH)), heads[0])
    (key_width,) = _numbers(said, key(Keys.Attention.KEY_LENGTH), 1, (0 if rest else even,))
    (value_width,) = _numbers(said, key(Keys.Attention.VALUE_LENGTH), 1, (even,))
    if not key_width or any(shared and own % shared for own, shared in zip(heads, kv_heads, strict=True)):
        raise said.unsupported("has heads that do not divide evenly")
    (window,) = _numbers(said, key(Keys.Attention.SLIDING_WINDOW), 1, (0,))
    widths = tuple(count * (key_width + value_width) for count in kv_heads)
    return GgufSizes(architecture, n_layers, hidden, vocabulary, context, heads, kv_heads, widths, window)


def _numbers(said: Settings, name: str, length: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Return `length` numbers from 0 on, of a list or of one number for all. Raises WeightsError."""
    value = said.get(name, default)
    found = tuple(value) if isinstance(value, list | tuple) else (value,) * length
    if len(found) != length or any(type(one) is not int or not 0 <= one <= LARGEST_COUNT for one in found):
        raise said.unusable(name)
    return found
