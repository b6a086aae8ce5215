"""Random GGUF models of a given shape and quantization, without a vocabulary. Quick to write: all tensors
are cut from one piece of random blocks, each from another place, since ONNX Runtime would keep equal ones only once.

The types of the tensors are those that llama.cpp's own quantizer chooses for such a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from zlib import crc32

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, Keys

from models.weights.gguf.file import WrittenTensor, encoded, write_gguf

CONTEXT = 8192
_ARCHITECTURE = "llama"
_PIECE = 1 << 20
_F32, _Q4_0, _Q8_0 = GGMLQuantizationType.F32, GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0
_Q4_K, _Q6_K = GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q6_K
_SCALES = {_Q4_0: (0,), _Q8_0: (0,), _Q4_K: (0, 2), _Q6_K: (208,)}
"""Where the float16 scales lie in a block of each type."""

MAIN_TYPES = {"Q4_0": _Q4_0, "Q4_K_M": _Q4_K, "Q8_0": _Q8_0}


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama. With `tied` the head is the embedding."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool


def random_gguf(shape: Shape, quantization: str, folder: Path) -> Path:
    """Return the file of a model in `folder`, which is written unless it is there. Raises OSError."""
    path = folder / f"random-{shape.name}-{quantization}.gguf"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_gguf(path, _metadata(shape), _tensors(shape, quantization))
    return path


def _metadata(shape: Shape) -> dict[str, bytes]:
    head = shape.hidden // shape.heads
    values: dict[str, int | float | str] = {
        Keys.General.ARCHITECTURE: _ARCHITECTURE,
        Keys.Tokenizer.MODEL: "no_vocab",
        Keys.LLM.VOCAB_SIZE: shape.vocabulary,
        Keys.LLM.BLOCK_COUNT: shape.layers,
        Keys.LLM.CONTEXT_LENGTH: CONTEXT,
        Keys.LLM.EMBEDDING_LENGTH: shape.hidden,
        Keys.LLM.FEED_FORWARD_LENGTH: shape.inner,
        Keys.Attention.HEAD_COUNT: shape.heads,
        Keys.Attention.HEAD_COUNT_KV: shape.kv_heads,
        Keys.Attention.LAYERNORM_RMS_EPS: 1e-5,
        Keys.Rope.DIMENSION_COUNT: head,
        Keys.Rope.FREQ_BASE: 500000.0,
    }
    return {key.format(arch=_ARCHITECTURE): encoded(value) for key, value in values.items()}


def _tensors(shape: Shape, quantization: str) -> Iterator[WrittenTensor]:
    main = MAIN_TYPES[quantization]
    head = _Q8_0 if main == _Q8_0 else _Q6_K
    embedding = (shape.vocabulary, shape.hidden)
    yield _random("token_embd.weight", head if shape.tied else main, embedding)
    yield _ones("output_norm.weight", shape.hidden)
    if not shape.tied:
        yield _random("output.weight", head, embedding)
    keys = shape.kv_heads * shape.hidden // shape.heads
    square, narrow = (shape.hidden, shape.hidden), (keys, shape.hidden)
    for layer in range(shape.layers):
        better = _Q6_K if main == _Q4_K and _has_more_bits(layer, shape.layers) else main
        for name, kind, size in (
            ("attn_q", main, square),
            ("attn_k", main, narrow),
            ("attn_v", better, narrow),
            ("attn_output", main, square),
            ("ffn_gate", main, (shape.inner, shape.hidden)),
            ("ffn_up", main, (shape.inner, shape.hidden)),
            ("ffn_down", better, (shape.hidden, shape.inner)),
        ):
            yield _random(f"blk.{layer}.{name}.weight", kind, size)
        yield _ones(f"blk.{layer}.attn_norm.weight", shape.hidden)
        yield _ones(f"blk.{layer}.ffn_norm.weight", shape.hidden)


def _has_more_bits(layer: int, layers: int) -> bool:
    """Return whether the `_M` mixtures of llama.cpp store a layer's values and down projection in more bits."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _ones(name: str, size: int) -> WrittenTensor:
    return WrittenTensor(name, _F32, (size,), content=np.ones(size, "<f4").tobytes())


def _random(name: str, kind: GGMLQuantizationType, shape: tuple[int, int]) -> WrittenTensor:
    return WrittenTensor(name, kind, shape, content=lambda: _random_blocks(name, kind, shape))


def _random_blocks(name: str, kind: GGMLQuantizationType, shape: tuple[int, int]) -> bytes:
    """Repeat some random blocks from a place that follows from the name."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    piece, nbytes = _piece(kind, shape[1]), int(prod(shape) // block * block_bytes)
    first = int(crc32(name.encode()) * block_bytes % len(piece))
    return (piece * -(-(first + nbytes) // len(piece)))[first : first + nbytes]


@cache
def _piece(kind: GGMLQuantizationType, columns: int) -> bytes:
    """Make random blocks, with scales so small that activations stay finite."""
    _, block_bytes = GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(0).integers(0, 256, (_PIECE // block_bytes, block_bytes), np.uint8)
    scale = np.frombuffer(np.float16(0.01 / np.sqrt(columns)).tobytes(), np.uint8)
    for place in _SCALES[kind]:
        blocks[:, place : place + 2] = scale
    piece: bytes = blocks.tobytes()
    return piece
