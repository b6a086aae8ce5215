"""The configuration of a Llama from the metadata of its GGUF file. Reads no weights but the rope factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFType, Keys

from models.config import ModelConfig, checked_config
from models.errors import WeightsError
from models.weights.gguf_header import GgufHeader, GgufTensor
from models.weights.gguf_tensors import read_tensor

ARCHITECTURE = "llama"
_SCALE_LINEAR = "{arch}.rope.scale_linear"  # what older files have in place of rope.scaling
_DTYPES = {GGMLQuantizationType.F32: "float32", GGMLQuantizationType.BF16: "bfloat16"}


class _Metadata:
    """The metadata of a file, with the keys of its architecture."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self._entries = entries

    def get(self, key: str, default: Any = None) -> Any:
        """Look up one of `gguf.Keys`, such as "{arch}.block_count"."""
        return self._entries.get(key.format(arch=ARCHITECTURE), default)


def config_from_gguf(header: GgufHeader, path: Path) -> ModelConfig:
    """Read the configuration that the metadata describes. Raises WeightsError for anything but a whole Llama."""
    metadata = _Metadata(header.metadata)
    _check_whole_model(metadata, path)
    architecture = metadata.get(Keys.General.ARCHITECTURE)
    if architecture != ARCHITECTURE or metadata.get(Keys.LLM.EXPERT_COUNT):
        raise WeightsError(f"{path} is of the architecture {architecture!r}, and exobus runs llama; pick another model")
    hidden, heads = metadata.get(Keys.LLM.EMBEDDING_LENGTH), metadata.get(Keys.Attention.HEAD_COUNT)
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or not isinstance(hidden, int) or not isinstance(heads, int) or heads <= 0:
        raise WeightsError(f"{path} holds no whole model; fetch a single-file GGUF of it")
    values = _values(header, metadata, embedding, hidden // heads)
    config = checked_config(values, str(path))
    if metadata.get(Keys.Rope.DIMENSION_COUNT, config.head_dim) != config.head_dim:
        raise WeightsError(f"{path} rotates only a part of each head, which exobus does not do; pick another model")
    return checked_config({**values, "rope_scaling": _rope_scaling(header, metadata, config, path)}, str(path))


def _check_whole_model(metadata: _Metadata, path: Path) -> None:
    """Raise WeightsError for a part of a model, and for a file that only goes with one, such as a LoRA adapter."""
    parts = metadata.get(Keys.Split.LLM_KV_SPLIT_COUNT, 0)
    if parts not in (0, 1):
        raise WeightsError(
            f"{path} is one of the {parts} files of a split model; name them as their makers do, "
            "such as model-00001-of-00003.gguf"
        )
    kind = metadata.get(Keys.General.TYPE, GGUFType.MODEL)
    if kind != GGUFType.MODEL:
        raise WeightsError(f"{path} is of the type {kind!r} and goes with a model; point to the model's own file")


def _values(header: GgufHeader, metadata: _Metadata, embedding: GgufTensor, even_head_dim: int) -> dict[str, Any]:
    """Collect the fields of a ModelConfig, unchecked. `even_head_dim` stands in for a missing head size."""
    heads = metadata.get(Keys.Attention.HEAD_COUNT)
    return {
        "model_type": ARCHITECTURE,
        "n_layers": metadata.get(Keys.LLM.BLOCK_COUNT),
        "hidden_size": metadata.get(Keys.LLM.EMBEDDING_LENGTH),
        "n_heads": heads,
        "n_kv_heads": metadata.get(Keys.Attention.HEAD_COUNT_KV, heads),
        "head_dim": metadata.get(Keys.Attention.KEY_LENGTH, even_head_dim),
        "intermediate_size": metadata.get(Keys.LLM.FEED_FORWARD_LENGTH),
        "vocab_size": embedding.shape[0],
        "rope_theta": metadata.get(Keys.Rope.FREQ_BASE, 10000.0),
        "rms_norm_eps": _shortest(metadata.get(Keys.Attention.LAYERNORM_RMS_EPS, 1e-5)),
        "context_length": metadata.get(Keys.LLM.CONTEXT_LENGTH),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in header.tensors,
        "bos_token_id": metadata.get(Keys.Tokenizer.BOS_ID),
        "eos_token_ids": eos_token_ids(header.metadata),
        "dtype": _DTYPES.get(embedding.kind, "float16"),
    }


def eos_token_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """List the ids that end an answer: end of sequence and, if the file names them, end of turn and of message."""
    ids = [metadata.get(key) for key in (Keys.Tokenizer.EOS_ID, Keys.Tokenizer.EOT_ID, Keys.Tokenizer.EOM_ID)]
    return tuple(dict.fromkeys(token for token in ids if isinstance(token, int)))


def _shortest(value: Any) -> Any:
    """Return the shortest decimal that float32 rounds to `value`: 9.9999997e-06 in a file was 1e-5 before."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _rope_scaling(header: GgufHeader, metadata: _Metadata, config: ModelConfig, path: Path) -> dict[str, Any] | None:
    """Read the scaling rule by its name or, in files of Llama 3, from the tensor of rope factors.

    As in llama.cpp (`src/llama-model.cpp`) a rule without a name is linear, and a factor of 0 or 1 scales nothing.
    """
    kind = metadata.get(Keys.Rope.SCALING_TYPE, "linear")
    factor = metadata.get(Keys.Rope.SCALING_FACTOR, metadata.get(_SCALE_LINEAR, 0.0))
    stored = header.tensors.get("rope_freqs.weight")
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None if stored is None else _llama3_scaling(read_tensor(path, stored), config, path)
    if stored is not None:
        raise WeightsError(f"{path} scales its rope by two rules; pick the safetensors form of this model")
    return {"rope_type": kind, "factor": factor}


def _llama3_scaling(factors: np.ndarray, config: ModelConfig, path: Path) -> dict[str, Any]:
    """Find the parameters of Llama 3's rule from each frequency's divisor, and check that the rule gives them."""
    if 2 * factors.size != config.head_dim:
        raise WeightsError(f"{path} has {factors.size} rope factors for heads of {config.head_dim}; fetch it again")
    scaling = {"factor": float(factors.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    rotations = 8192 * config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim) / (2 * math.pi)
    smooth = np.clip((rotations - 1.0) / 3.0, 0.0, 1.0)
    rule = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    if not np.allclose(rule, factors, rtol=1e-3):
        raise WeightsError(f"{path} scales its rope by an unknown rule; pick the safetensors form of this model")
    return {**scaling, "rope_type": "llama3"}
