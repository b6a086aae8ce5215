"""How much memory a shard of a model takes on a node, by the node's engine. Pure: card and capabilities in, bytes out.

The placer's plan, a node's promise to its stages, `:auto` and `exobus models plan` all count by these functions. What
an engine holds beside weights, keys and values (its code, and what a pass computes) is not counted: a node gives a
stage only half of what its weights leave.
"""

from __future__ import annotations

from cluster.capabilities import DeviceCapabilities
from cluster.shard import Shard
from models.card import PACKED_BITS, ModelCard

PACKS = ("onnx",)
"""The engines that keep matrices as blocks if their precision is `fast`, and that can round float ones."""

AS_STORED = ("llamacpp",)
"""The engines that hold a model in as many bytes as its files have."""

AUTO_BITS = (8, 4)
"""To how many bits nodes with `--quantize auto` may round, the most first."""


def engine_bytes(card: ModelCard, shard: Shard, node: DeviceCapabilities, bits: int) -> dict[str, int]:
    """Count the bytes of a shard's weights with each engine that may run it on a node: the node's own, and llama.cpp.

    That one runs GGUF files, if the node has it and `exact` was not asked for. `bits` are those to which an engine
    that can rounds float matrices.
    """
    others = AS_STORED if card.is_gguf and node.precision != "exact" else ()
    names = (node.engine, *(name for name in others if name != node.engine and node.has(name)))
    return {name: _bytes_with(name, card, shard, node, bits) for name in names}


def weight_bytes(card: ModelCard, shard: Shard, node: DeviceCapabilities, bits: int | None = None) -> int:
    """Count the bytes of a shard's weights on a node, with the engine that takes least.

    Its float matrices are rounded to `bits` bits if that engine can; without `bits` it is what `rounded_to` says.
    """
    rounded = rounded_to(card, shard, node) if bits is None else bits
    return min(engine_bytes(card, shard, node, rounded).values())


def _bytes_with(engine: str, card: ModelCard, shard: Shard, node: DeviceCapabilities, bits: int) -> int:
    if engine in AS_STORED:
        return min(_share(card, shard), card.size_bytes)
    if engine in PACKS:
        return _blocks(card, shard, node, bits)
    return card.shard_bytes(shard)


def least_bytes(card: ModelCard, shard: Shard, node: DeviceCapabilities, positions: int = 0, auto_bits: int = 0) -> int:
    """Count the bytes that a node must have free to hold a shard: weights, and keys and values of one session.

    That has `positions` positions, or the least that a shard is loaded for. `auto_bits` is that of `rounded_to`.
    """
    bits = rounded_to(card, shard, node, auto_bits)
    return weight_bytes(card, shard, node, bits) + _session_bytes(card, shard, positions)


def rounded_to(card: ModelCard, shard: Shard, node: DeviceCapabilities, auto_bits: int = 0) -> int:
    """Return to how many bits a node rounds the float matrices of a shard; 0 if it rounds none.

    `auto` is `auto_bits`, which the placer decides for a whole ring. Without, it is 8 bits, or 4 if 8 do not fit the
    memory that is available.
    """
    if node.engine not in PACKS or node.precision == "exact" or node.quantize == "none":
        return 0
    if node.quantize != "auto":
        return int(node.quantize)
    if auto_bits:
        return auto_bits
    need = _blocks(card, shard, node, 8) + _session_bytes(card, shard, 0)
    return 8 if need <= node.memory_available else 4


def named_bits(card: ModelCard, shard: Shard, node: DeviceCapabilities, auto_bits: int) -> int:
    """Return to how many bits a node rounds float matrices of a shard if it has any, as a loaded stage says it."""
    bits = rounded_to(card, shard, node, auto_bits)
    return bits if weight_bytes(card, shard, node, bits) < weight_bytes(card, shard, node, 0) else 0


def _session_bytes(card: ModelCard, shard: Shard, positions: int) -> int:
    return max(card.least_kv_bytes(shard), card.kv_bytes(shard, min(positions, card.context_length)))


def _blocks(card: ModelCard, shard: Shard, node: DeviceCapabilities, bits: int) -> int:
    """Count with matrices in blocks. A tied embedding is there twice: as a table to look up, and as the head.

    A card without the sizes of blocks counts as float32.
    """
    layer, embedding, head = card.layer_bytes, card.embedding_bytes, card.embedding_bytes
    if card.packed is not None and node.precision != "exact":
        packed = (card.packed.layer, card.packed.embedding, card.packed.head)
        layer, embedding, head = (sizes[PACKED_BITS.index(bits)] for sizes in packed)
    return len(shard.layers) * layer + shard.is_first * embedding + shard.is_last * head


def _share(card: ModelCard, shard: Shard) -> int:
    """Count a shard's part of the files. The embedding and the head have at least 8 bits a weight."""
    whole = card.n_layers * card.layer_bytes + (1 if card.tied_embedding else 2) * card.embedding_bytes
    table = max(card.embedding_bytes * card.size_bytes // whole, card.embedding_bytes * 17 // 64)
    ends = shard.is_first + shard.is_last
    layers = -(-len(shard.layers) * card.layer_bytes * card.size_bytes // whole)
    return layers + (min(ends, 1) if card.tied_embedding else ends) * table
