"""A GGUF file of the Llama architecture, read tensor by tensor under its Hugging Face checkpoint names.

llama.cpp stores the rows of q and k in the order of its pairwise rope; they are put back into the half-split
order of the checkpoint. Quantised tensors are widened to float32 in pieces that fit a processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from models.checkpoint import check_shapes
from models.config import ModelConfig, checked_config
from models.errors import WeightsError
from models.gguf_header import GgufHeader, GgufTensor, read_header
from models.quantized import UNPACK, QuantizedMatrix

_ROPE_FACTORS = "rope_freqs.weight"
_PIECE_WEIGHTS = 1 << 16
_STORED_DTYPES = {GGMLQuantizationType.F32: "float32", GGMLQuantizationType.BF16: "bfloat16"}
_CHECKPOINT_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class GgufWeights:
    """The tensors of a .gguf file; only the bytes of the tensors that are asked for are read."""

    def __init__(self, path: Path) -> None:
        header = read_header(path)
        self._path = path
        self._tensors = {checkpoint_name(name): tensor for name, tensor in header.tensors.items()}
        self.config = config_from_gguf(header, path)
        check_shapes(self.config, {name: tensor.shape for name, tensor in self._tensors.items()}, path)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored in the file."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def names(self) -> frozenset[str]:
        """The checkpoint names of all tensors in the file."""
        return frozenset(self._tensors) - {_ROPE_FACTORS}

    def tensor(self, name: str) -> np.ndarray:
        """A fresh C-contiguous float32 array of the checkpoint's shape. WeightsError if the file lacks it."""
        return self._in_order(name, read_tensor(self._path, self._stored(name)))

    def blocks(self, name: str) -> QuantizedMatrix | None:
        """The matrix as it is stored, if that is in blocks we know. WeightsError if the file lacks it."""
        stored = self._stored(name)
        if stored.kind not in UNPACK:
            return None
        found = UNPACK[stored.kind](_read_packed(self._path, stored), stored.shape[0])
        codes, scales, minimums = (self._in_order(name, part) for part in (found.codes, found.scales, found.minimums))
        return QuantizedMatrix(codes, scales, minimums, found.bits, found.centre)

    def _stored(self, name: str) -> GgufTensor:
        stored = self._tensors.get(name)
        if stored is None:
            raise WeightsError(f"{self._path} holds no tensor {name}; fetch the model again")
        return stored

    def _in_order(self, name: str, rows: np.ndarray) -> np.ndarray:
        """The tensor's rows in the checkpoint's order."""
        if ".q_proj." in name:
            return _half_split(rows, self.config.n_heads)
        if ".k_proj." in name:
            return _half_split(rows, self.config.n_kv_heads)
        return rows

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tensors.clear()


def checkpoint_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; an unknown name stays."""
    stem, _, suffix = name.rpartition(".")
    prefix, _, part = stem.rpartition(".")
    if part not in _CHECKPOINT_NAMES:
        return name
    layer = f"model.layers.{prefix.removeprefix('blk.')}." if prefix else ""
    return f"{layer}{_CHECKPOINT_NAMES[part]}.{suffix}"


def read_tensor(path: Path, stored: GgufTensor) -> np.ndarray:
    """The tensor as float32 in the file's own row order. WeightsError."""
    packed = _read_packed(path, stored)
    if stored.kind == GGMLQuantizationType.F32:
        return packed.view("<f4").reshape(stored.shape)
    try:
        return _dequantised(packed, stored).reshape(stored.shape)
    except NotImplementedError as error:
        raise WeightsError(
            f"{path} stores weights as {stored.kind.name}, which cannot be read; pick another"
        ) from error


def _read_packed(path: Path, stored: GgufTensor) -> np.ndarray:
    """The tensor's bytes. WeightsError."""
    try:
        packed = np.fromfile(path, np.uint8, stored.nbytes, offset=stored.offset)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); fetch the model again") from error
    if packed.size != stored.nbytes:
        raise WeightsError(f"{path} was cut short while it was read; delete it and fetch the model again")
    return packed


def _dequantised(packed: np.ndarray, stored: GgufTensor) -> np.ndarray:
    """Flat float32: blocks do not span rows, so the pieces need not follow rows either."""
    block, block_bytes = GGML_QUANT_SIZES[stored.kind]
    values = np.empty(math.prod(stored.shape), np.float32)
    step = max(_PIECE_WEIGHTS // block, 1)
    for first in range(0, values.size // block, step):
        piece = packed[first * block_bytes : (first + step) * block_bytes]
        if stored.kind == GGMLQuantizationType.F16:
            piece = piece.view("<f2")
        values[first * block : (first + step) * block] = gguf.dequantize(piece, stored.kind)
    return values


def _half_split(values: np.ndarray, heads: int) -> np.ndarray:
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def config_from_gguf(header: GgufHeader, path: Path) -> ModelConfig:
    """The configuration that the metadata describes. WeightsError for another architecture than Llama."""
    metadata = header.metadata
    architecture = metadata.get("general.architecture")
    if architecture != "llama" or metadata.get("llama.expert_count"):
        raise WeightsError(f"{path} is of the architecture {architecture!r}, and exobus runs llama; pick another model")
    hidden, heads = metadata.get("llama.embedding_length"), metadata.get("llama.attention.head_count")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or not isinstance(hidden, int) or not isinstance(heads, int) or heads <= 0:
        raise WeightsError(f"{path} holds no whole model; fetch a single-file GGUF of it")
    values = _values(header, embedding, hidden // heads)
    config = checked_config(values, str(path))
    if metadata.get("llama.rope.dimension_count", config.head_dim) != config.head_dim:
        raise WeightsError(f"{path} turns only a part of each head, which exobus does not do; pick another model")
    return checked_config({**values, "rope_scaling": _rope_scaling(header, config, path)}, str(path))


def _values(header: GgufHeader, embedding: GgufTensor, even_head_dim: int) -> dict[str, Any]:
    """The fields of a ModelConfig as the file gives them, unchecked; `even_head_dim` if it gives no other."""
    metadata = header.metadata
    return {
        "model_type": "llama",
        "n_layers": metadata.get("llama.block_count"),
        "hidden_size": metadata.get("llama.embedding_length"),
        "n_heads": metadata.get("llama.attention.head_count"),
        "n_kv_heads": metadata.get("llama.attention.head_count_kv", metadata.get("llama.attention.head_count")),
        "head_dim": metadata.get("llama.attention.key_length", even_head_dim),
        "intermediate_size": metadata.get("llama.feed_forward_length"),
        "vocab_size": embedding.shape[0],
        "rope_theta": metadata.get("llama.rope.freq_base", 10000.0),
        "rms_norm_eps": _shortest(metadata.get("llama.attention.layer_norm_rms_epsilon", 1e-5)),
        "context_length": metadata.get("llama.context_length"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in header.tensors,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_ids": eos_token_ids(metadata),
        "dtype": _STORED_DTYPES.get(embedding.kind, "float16"),
    }


def eos_token_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end an answer: end of sequence, and end of turn where the file knows one."""
    ids = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot")]
    return tuple(dict.fromkeys(token for token in ids if isinstance(token, int)))


def _shortest(value: Any) -> Any:
    """The shortest decimal that float32 rounds to `value`: a file's 9.9999997e-06 was written as 1e-5."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _rope_scaling(header: GgufHeader, config: ModelConfig, path: Path) -> dict[str, Any] | None:
    kind = header.metadata.get("llama.rope.scaling.type", "none")
    if kind != "none":
        return {"rope_type": kind, "factor": header.metadata.get("llama.rope.scaling.factor", 1.0)}
    stored = header.tensors.get(_ROPE_FACTORS)
    return None if stored is None else _llama3_scaling(read_tensor(path, stored), config, path)


def _llama3_scaling(factors: np.ndarray, config: ModelConfig, path: Path) -> dict[str, Any]:
    """Llama 3 files carry each frequency's divisor; find the rule's `factor` and prove that it gives them."""
    if 2 * factors.size != config.head_dim:
        raise WeightsError(f"{path} has {factors.size} rope factors for heads of {config.head_dim}; fetch it again")
    scaling = {"factor": float(factors.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    turns = 8192 * config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim) / (2 * math.pi)
    smooth = np.clip((turns - 1.0) / 3.0, 0.0, 1.0)
    rule = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    if not np.allclose(rule, factors, rtol=1e-3):
        raise WeightsError(f"{path} scales its rope by an unknown rule; pick the safetensors form of this model")
    return {**scaling, "rope_type": "llama3"}
