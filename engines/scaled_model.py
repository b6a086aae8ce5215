"""A small model in the proportions of a GGUF file: some of its layers, and as large a share of its vocabulary.

For measuring. A pass through it takes the same share of the time of a pass through the whole model, with the same
kernels, since its tensors have the types and shapes of the model's own. Matrices are holes in the file, so they read
as zeros: no byte of the model's matrices is read, and none is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gguf import GGUF_DEFAULT_ALIGNMENT, Keys

from engines.llamacpp.shard_file import copied_entries
from models.weights.gguf.file import WrittenTensor, encoded, write_gguf
from models.weights.gguf.header import GgufHeader, GgufTensor
from models.weights.gguf.parts import part_path

LEAST_BYTES = 64 << 20
"""More than a processor's cache. Models that are not larger are measured whole."""

LEAST_LAYERS = 2


class Scaled(NamedTuple):
    """A small model has `n_layers`, and the one that it stands for is `scale` times as large."""

    n_layers: int
    scale: float


_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_OF_VOCABULARY = ("token_embd.weight", "output.weight", "output.bias")


def measured_layers(header: GgufHeader) -> list[int]:
    """Return the layers to measure, evenly spread, since mixtures of types store some layers in more bits."""
    count = int(header.metadata[_key(header, Keys.LLM.BLOCK_COUNT)])
    nbytes = sum(tensor.nbytes for tensor in header.tensors.values())
    wanted = min(max(LEAST_LAYERS, -(-count * LEAST_BYTES // max(nbytes, 1))), count)
    return [(2 * index + 1) * count // (2 * wanted) for index in range(wanted)]


def write_scaled(target: Path, source: Path, header: GgufHeader) -> Scaled:
    """Write the small model of the one at `source`. Raises OSError.

    The lists of the metadata that have an item for each layer are cut accordingly; a value that depends on a layer's
    number in another way is copied as it is. So the small model may compute something else, though as fast.
    """
    layers = measured_layers(header)
    count = int(header.metadata[_key(header, Keys.LLM.BLOCK_COUNT)])
    rows = max(header.tensors["token_embd.weight"].shape[0] * len(layers) // count, 1)
    with source.open("rb") as file:
        entries = copied_entries(file, header, layers, count)
    entries[_key(header, Keys.LLM.BLOCK_COUNT)] = encoded(len(layers))
    entries[_key(header, Keys.LLM.VOCAB_SIZE)] = encoded(rows)
    entries[Keys.Tokenizer.MODEL] = encoded("no_vocab")
    alignment = header.metadata.get(Keys.General.ALIGNMENT, GGUF_DEFAULT_ALIGNMENT)
    write_gguf(target, entries, _tensors(source, header, layers, rows), alignment)
    return Scaled(len(layers), count / len(layers))


def _tensors(source: Path, header: GgufHeader, layers: Sequence[int], rows: int) -> Iterator[WrittenTensor]:
    for name, tensor in header.tensors.items():
        if (layer := _LAYER.fullmatch(name)) is None:
            shape = (rows, *tensor.shape[1:]) if name in _OF_VOCABULARY else tensor.shape
            yield _scaled(source, name, tensor, shape)
        elif int(layer[1]) in layers:
            yield _scaled(source, f"blk.{layers.index(int(layer[1]))}.{layer[2]}", tensor, tensor.shape)


def _scaled(source: Path, name: str, tensor: GgufTensor, shape: tuple[int, ...]) -> WrittenTensor:
    """Return a hole for a matrix. Vectors, such as norms and the divisors of a rope, are copied."""
    if len(shape) > 1:
        return WrittenTensor(name, tensor.kind, shape)
    return WrittenTensor(name, tensor.kind, shape, part_path(source, tensor.part), tensor.offset)


def _key(header: GgufHeader, key: str) -> str:
    return key.format(arch=header.metadata[Keys.General.ARCHITECTURE])
