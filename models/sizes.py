"""How many bytes a model takes in memory, from its description: weights, and keys and values, in float32."""

from __future__ import annotations

from math import prod

import msgspec

from cluster.shard import Shard
from models.architecture import Architecture, Attention, Dtype
from models.weights.checkpoint import layer_shapes, tensor_shapes

FLOAT32_BYTES = 4


class ModelSizes(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of a whole model, whether or not exobus describes it."""

    model_type: str
    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    tied_embedding: bool
    dtype: Dtype


class ShardSizes(msgspec.Struct, frozen=True):
    """What an engine checks a shard's inputs against, whatever describes its model.

    Between two layers hidden states are rounded to `dtype`, and a position takes `position_bytes` of keys and values
    in all layers of the shard.
    """

    hidden_size: int
    vocab_size: int
    context_length: int
    dtype: Dtype
    position_bytes: int


def model_sizes(architecture: Architecture) -> ModelSizes:
    """Return the sizes of a model that exobus describes."""
    heads = architecture.heads
    return ModelSizes(
        model_type=architecture.family,
        n_layers=architecture.n_layers,
        hidden_size=architecture.hidden_size,
        n_heads=heads.heads,
        n_kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        vocab_size=architecture.vocab_size,
        context_length=architecture.context_length,
        tied_embedding=architecture.tied_embedding,
        dtype=architecture.dtype,
    )


def shard_sizes(architecture: Architecture, shard: Shard) -> ShardSizes:
    """Return the sizes of a shard with keys and values in float32."""
    return ShardSizes(
        architecture.hidden_size,
        architecture.vocab_size,
        architecture.context_length,
        architecture.dtype,
        position_bytes(architecture, shard),
    )


def weight_bytes(architecture: Architecture, shard: Shard) -> int:
    """Count the bytes of a shard's tensors."""
    return FLOAT32_BYTES * sum(prod(shape) for shape in tensor_shapes(architecture, shard).values())


def position_bytes(architecture: Architecture, shard: Shard) -> int:
    """Count the bytes of keys and values that one position takes in all layers of a shard."""
    return sum(_layer_position_bytes(architecture.layers[index].attention) for index in shard.layers)


def kv_bytes(architecture: Architecture, shard: Shard, positions: int) -> int:
    """Count the bytes of keys and values that are looked at after `positions` positions: a layer's window at most.

    An engine that can go back, or copy a prefix, keeps more: `position_bytes` for each position.
    """
    layers = [architecture.layers[index].attention for index in shard.layers]
    return sum(_layer_position_bytes(layer) * min(positions, layer.window or positions) for layer in layers)


def layer_bytes(architecture: Architecture) -> int:
    """Count the bytes of the tensors of a layer, as a model card states them; of the largest one if they differ."""
    shapes = [layer_shapes(layer, architecture.hidden_size) for layer in set(architecture.layers)]
    return FLOAT32_BYTES * max(sum(map(prod, layer.values())) for layer in shapes)


def _layer_position_bytes(attention: Attention) -> int:
    return 2 * attention.kv_heads * attention.head_dim * FLOAT32_BYTES
