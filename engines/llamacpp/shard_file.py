"""A GGUF file of some layers of another one, which llama.cpp loads like a whole model.

The layers' bytes are copied as they are and numbered from 0. What llama.cpp wants of each model and a part does not
have is put in: norms of ones, and embeddings and heads of zeros, which are never used and are holes in the file. A
file is written once into the model cache, under a name with its source's path, size and time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, Keys

from cluster.shard import Shard
from engines.llamacpp.cut_table import CutRule, cut_rule, windowed_layers
from models.cache import default_cache_root
from models.errors import WeightsError
from models.weights.gguf.file import WrittenTensor, encoded, encoded_flags, picked, write_gguf
from models.weights.gguf.header import GgufHeader, GgufTensor
from models.weights.gguf.parts import part_path

FOLDER = ".shards"
KEPT = 8
"""How many shard files of one model stay in the cache; the oldest go first. A process that has loaded one keeps it."""

_BUILDER = 2  # part of the name: another one makes other files
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_NOT_OF_LAYERS = ("rope.dimension_sections",)
_NOT_OF_PARTS = ("tokenizer.", "split.")
_WINDOW = "{arch}.attention.sliding_window_pattern"
_EMBEDDING, _HEAD, _NORM = "token_embd.weight", "output.weight", "output_norm.weight"
_FEW_BITS = (GGMLQuantizationType.IQ1_S, GGMLQuantizationType.Q4_1, GGMLQuantizationType.F16)
"""The types for stand-ins, in order. A GPU has them in its memory, and so has a system that maps no holes."""

_OUTPUTS = (_HEAD, "output.bias", _NORM, "output_norm.bias")


def shard_file(path: Path, header: GgufHeader, shard: Shard, root: Path | None = None) -> Path:
    """Return the file of a shard of the model at `path`: that one for the whole model, else one of the cache under
    `root`, which is written unless it is there.

    Raises NotInParts for a model that cannot be cut there, and WeightsError if the file cannot be written.
    """
    if shard.is_first and shard.is_last:
        return path
    rule = cut_rule(header.metadata[Keys.General.ARCHITECTURE], shard)
    folder = (root or default_cache_root()) / FOLDER
    source = name_of(path)
    found = folder / f"{source}-{shard.start_layer}-{shard.end_layer}.gguf"
    if not found.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(found, path, header, shard, rule)
            _remove_oldest(folder, source)
        except OSError as error:
            raise WeightsError(f"{found} cannot be written ({error.strerror or error}); free some space") from error
    return found


def name_of(path: Path) -> str:
    """Return a name for the file at `path` as it is now."""
    status = path.stat()
    facts = f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}\n{_BUILDER}"
    return hashlib.sha256(facts.encode()).hexdigest()[:24]


def check_cut(header: GgufHeader, shard: Shard) -> None:
    """Raise NotInParts if `shard_file` would, for a model that cannot be cut there."""
    if not (shard.is_first and shard.is_last):
        _windowed(header, shard, cut_rule(header.metadata[Keys.General.ARCHITECTURE], shard))


def _write(found: Path, path: Path, header: GgufHeader, shard: Shard, rule: CutRule) -> None:
    alignment = header.metadata.get(Keys.General.ALIGNMENT, GGUF_DEFAULT_ALIGNMENT)
    with path.open("rb") as source:
        entries = _entries(source, header, shard, rule)
    write_gguf(found, entries, _tensors(path, header, shard), alignment)


def _entries(source: IO[bytes], header: GgufHeader, shard: Shard, rule: CutRule) -> dict[str, bytes]:
    """Return the metadata of a part, encoded: the model's without its vocabulary, and what is true of the part."""
    architecture = header.metadata[Keys.General.ARCHITECTURE]
    changed = {
        Keys.LLM.BLOCK_COUNT: encoded(len(shard.layers)),
        Keys.LLM.VOCAB_SIZE: encoded(_vocabulary(header, shard)),
        Keys.Tokenizer.MODEL: encoded("no_vocab"),
    }
    if rule.scaled and not shard.is_first:
        changed[Keys.LLM.EMBEDDING_SCALE] = encoded(1.0)
    if (windowed := _windowed(header, shard, rule)) is not None:
        changed[_WINDOW] = encoded_flags(windowed)
    entries = copied_entries(source, header, shard.layers, shard.n_layers)
    return entries | {key.format(arch=architecture): value for key, value in changed.items()}


def copied_entries(source: IO[bytes], header: GgufHeader, layers: Sequence[int], n_layers: int) -> dict[str, bytes]:
    """Return the encoded metadata of a model for some of its layers, without what concerns texts and split files."""
    entries = {}
    for key, (begin, end) in header.places.items():
        if not key.startswith(_NOT_OF_PARTS):
            source.seek(begin)
            value = source.read(end - begin)
            entries[key] = picked(value, layers) if _is_of_layers(key, header, n_layers) else value
    return entries


def _is_of_layers(key: str, header: GgufHeader, n_layers: int) -> bool:
    """Return whether a metadata value is a list with an item for each layer of the model."""
    value = header.metadata[key]
    listed = isinstance(value, list) and len(value) == n_layers and not isinstance(value[0], str)
    return listed and not key.endswith(_NOT_OF_LAYERS) and not key.startswith("general.")


def _windowed(header: GgufHeader, shard: Shard, rule: CutRule) -> list[bool] | None:
    """Return which layers of a part have a window, if its file has to say so. Raises NotInParts if it cannot."""
    architecture = header.metadata[Keys.General.ARCHITECTURE]
    said = header.metadata.get(_WINDOW.format(arch=architecture))
    has_window = header.metadata.get(Keys.Attention.SLIDING_WINDOW.format(arch=architecture))
    return windowed_layers(rule, said, shard) if has_window else None


def _vocabulary(header: GgufHeader, shard: Shard) -> int:
    """Return how many rows a part's embedding has: one if it neither embeds nor has the head."""
    return header.tensors[_EMBEDDING].shape[0] if shard.is_first or shard.is_last else 1


def _tensors(path: Path, header: GgufHeader, shard: Shard) -> Iterator[WrittenTensor]:
    """Return the tensors of a part: its layers, the ends that it has, stand-ins for the others, and what all share."""
    tied = _HEAD not in header.tensors
    kept = {_EMBEDDING: shard.is_first or (shard.is_last and tied), **dict.fromkeys(_OUTPUTS, shard.is_last)}
    for name, tensor in header.tensors.items():
        if layer := _LAYER.fullmatch(name):
            if int(layer[1]) in shard.layers:
                yield _stored(path, f"blk.{int(layer[1]) - shard.start_layer}.{layer[2]}", tensor)
        elif kept.get(name, True):
            yield _stored(path, name, tensor)
        else:
            yield _stand_in(name, tensor, _vocabulary(header, shard))


def _stored(path: Path, name: str, tensor: GgufTensor) -> WrittenTensor:
    return WrittenTensor(name, tensor.kind, tensor.shape, part_path(path, tensor.part), tensor.offset)


def _stand_in(name: str, tensor: GgufTensor, vocabulary: int) -> WrittenTensor:
    """Return a tensor of the shape that llama.cpp expects, which no output depends on."""
    if name == _NORM:
        return WrittenTensor(
            name, GGMLQuantizationType.F32, tensor.shape, content=np.ones(tensor.shape, "<f4").tobytes()
        )
    if len(tensor.shape) == 1:
        size = tensor.shape if name.startswith("output_norm") else (vocabulary,)
        return WrittenTensor(name, GGMLQuantizationType.F32, size)
    kind = next(kind for kind in _FEW_BITS if tensor.shape[1] % GGML_QUANT_SIZES[kind][0] == 0)
    return WrittenTensor(name, kind, (vocabulary, tensor.shape[1]))


def _remove_oldest(folder: Path, source: str) -> None:
    """Keep the newest shard files of a source. One that another process has just removed is no error."""
    files = sorted(folder.glob(f"{source}-*.gguf"), key=lambda file: file.stat().st_mtime_ns)
    for file in files[:-KEPT]:
        file.unlink(missing_ok=True)
