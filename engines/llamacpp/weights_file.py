"""A GGUF file of inner layers of a Llama from open weights, for measuring: the library loads nothing but files.

Matrices of 4-bit blocks of 32 are stored as such (Q4_1), everything else as float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, Keys

from cluster.shard import Shard
from engines.engine import FloatArray
from engines.errors import EngineError
from models.architecture import Mlp
from models.weights.checkpoint import tensor_names
from models.weights.gguf.file import WrittenTensor, encoded, write_gguf
from models.weights.gguf.weights import in_gguf_order
from models.weights.reader import Weights

ARCHITECTURE = "llama"
_BITS, _BLOCK = 4, 32


def write_weights(path: Path, weights: Weights, shard: Shard) -> None:
    """Write a shard. Raises EngineError if it has the embedding or the head, or scales its rope, and OSError."""
    model = weights.architecture
    heads, feed_forward, rope = model.heads, model.layers[0].feed_forward, model.heads.rope
    if shard.is_first or shard.is_last or rope is None or rope.scaling or not isinstance(feed_forward, Mlp):
        raise EngineError("the llamacpp engine reads GGUF files by their paths; try mlx or onnx")
    sizes: dict[str, int | float | str] = {
        Keys.General.ARCHITECTURE: ARCHITECTURE,
        Keys.Tokenizer.MODEL: "no_vocab",
        Keys.LLM.VOCAB_SIZE: 1,
        Keys.LLM.BLOCK_COUNT: len(shard.layers),
        Keys.LLM.CONTEXT_LENGTH: model.context_length,
        Keys.LLM.EMBEDDING_LENGTH: model.hidden_size,
        Keys.LLM.FEED_FORWARD_LENGTH: feed_forward.inner,
        Keys.Attention.HEAD_COUNT: heads.heads,
        Keys.Attention.HEAD_COUNT_KV: heads.kv_heads,
        Keys.Attention.KEY_LENGTH: heads.head_dim,
        Keys.Attention.VALUE_LENGTH: heads.head_dim,
        Keys.Attention.LAYERNORM_RMS_EPS: model.norm_eps,
        Keys.Rope.DIMENSION_COUNT: rope.dims,
        Keys.Rope.FREQ_BASE: rope.theta,
    }
    entries = {key.format(arch=ARCHITECTURE): encoded(value) for key, value in sizes.items()}
    write_gguf(path, entries, [*_ends(model.hidden_size), *_layers(weights, shard)])


def _ends(hidden: int) -> Iterator[WrittenTensor]:
    yield WrittenTensor("token_embd.weight", GGMLQuantizationType.F16, (1, hidden))
    yield _float32("output_norm.weight", np.ones(hidden, np.float32))


def _layers(weights: Weights, shard: Shard) -> Iterator[WrittenTensor]:
    """Return the tensors of the layers, numbered from 0."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shard.n_layers)
    for name in tensor_names(weights.architecture, shard):
        stored = str(names.get_name(name, (".weight", ".bias")))
        _, layer, rest = stored.split(".", 2)
        stored = f"blk.{int(layer) - shard.start_layer}.{rest}"
        blocks = weights.blocks(name)
        if blocks is not None and (blocks.form.bits, blocks.form.block) == (_BITS, _BLOCK):
            found = blocks.part(slice(None))
            parts = (
                in_gguf_order(weights.architecture, name, part) for part in (found.codes, found.scales, found.minimums)
            )
            yield WrittenTensor(stored, GGMLQuantizationType.Q4_1, blocks.shape, content=_q4_1(*parts))
        else:
            yield _float32(stored, in_gguf_order(weights.architecture, name, weights.tensor(name)))


def _float32(name: str, tensor: FloatArray) -> WrittenTensor:
    return WrittenTensor(name, GGMLQuantizationType.F32, tensor.shape, content=tensor.astype("<f4").tobytes())


def _q4_1(codes: np.ndarray, scales: np.ndarray, minimums: np.ndarray) -> bytes:
    """Pack each block: scale and minimum as float16, then the codes, of which the second half is in the high bits."""
    codes = codes.reshape(*scales.shape, 2, _BLOCK // 2)
    nibbles = codes[..., 0, :] | codes[..., 1, :] << 4
    halves = np.stack([scales, minimums], axis=-1).astype("<f2").view(np.uint8)
    return np.concatenate([halves, nibbles], axis=-1).tobytes()
