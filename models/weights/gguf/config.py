"""The settings of a model from the metadata of its GGUF file. Reads no weights but the rope factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFType, Keys

from models.errors import WeightsError
from models.families import GGUF_FAMILIES
from models.settings import Settings
from models.weights.gguf.header import GgufHeader
from models.weights.gguf.tensors import read_tensor

_SCALE_LINEAR = "{arch}.rope.scale_linear"  # what older files have in place of rope.scaling
_PROJECTOR = "clip"
_DTYPES = {GGMLQuantizationType.F32: "float32", GGMLQuantizationType.BF16: "bfloat16"}
_NAMES = {
    "num_hidden_layers": Keys.LLM.BLOCK_COUNT,
    "hidden_size": Keys.LLM.EMBEDDING_LENGTH,
    "intermediate_size": Keys.LLM.FEED_FORWARD_LENGTH,
    "max_position_embeddings": Keys.LLM.CONTEXT_LENGTH,
    "num_attention_heads": Keys.Attention.HEAD_COUNT,
    "num_key_value_heads": Keys.Attention.HEAD_COUNT_KV,
    "head_dim": Keys.Attention.KEY_LENGTH,
    "rms_norm_eps": Keys.Attention.LAYERNORM_RMS_EPS,
    "rope_theta": Keys.Rope.FREQ_BASE,
    "rope_local_base_freq": Keys.Rope.FREQ_BASE_SWA,
    "sliding_window": Keys.Attention.SLIDING_WINDOW,
    "attn_logit_softcapping": Keys.LLM.ATTN_LOGIT_SOFTCAPPING,
    "final_logit_softcapping": Keys.LLM.FINAL_LOGIT_SOFTCAPPING,
    "attention_multiplier": Keys.Attention.SCALE,
    "embedding_multiplier": Keys.LLM.EMBEDDING_SCALE,
    "residual_multiplier": Keys.LLM.RESIDUAL_SCALE,
    "logits_scaling": Keys.LLM.LOGIT_SCALE,
    "num_experts": Keys.LLM.EXPERT_COUNT,
    "num_experts_per_tok": Keys.LLM.EXPERT_USED_COUNT,
    "moe_intermediate_size": Keys.LLM.EXPERT_FEED_FORWARD_LENGTH,
    "norm_topk_prob": Keys.LLM.EXPERT_WEIGHTS_NORM,
    "bos_token_id": Keys.Tokenizer.BOS_ID,
    "eos_token_id": Keys.Tokenizer.EOS_ID,
}
"""The metadata of each setting."""

_DEFAULTS = {"rms_norm_eps": 1e-5, "norm_topk_prob": True, "whole_norms": True}
"""What is so in GGUF files that do not say: llama.cpp weighs the chosen experts alone, and stores a norm's weights with
what a checkpoint's family adds to them."""


class _Metadata:
    """The metadata of a file, with the keys of its architecture."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self._entries = entries
        self.architecture = entries.get(Keys.General.ARCHITECTURE)

    def get(self, key: str, default: Any = None) -> Any:
        """Look up one of `gguf.Keys`, such as "{arch}.block_count"."""
        return self._entries.get(key.format(arch=self.architecture), default)


def gguf_settings(header: GgufHeader, path: Path) -> Settings:
    """Read the settings that the metadata describes. Raises WeightsError for anything but a whole model."""
    metadata = _Metadata(header.metadata)
    check_whole_model(header.metadata, path)
    family = GGUF_FAMILIES.get(str(metadata.architecture))
    if family is None:
        known = ", ".join(GGUF_FAMILIES)
        raise WeightsError(
            f"{path} is of the architecture {metadata.architecture!r}, and exobus runs {known}; pick another model"
        )
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise WeightsError(f"{path} holds no whole model; fetch a single-file GGUF of it")
    found = {name: _shortest(metadata.get(key)) for name, key in _NAMES.items()}
    settings = Settings(_DEFAULTS | {name: value for name, value in found.items() if value is not None}, str(path))
    hidden, heads = settings.count("hidden_size"), settings.count("num_attention_heads")
    head_dim = settings.count("head_dim", max(hidden // heads, 1))
    settings = settings.replaced(
        model_type=family.model_types[0],
        vocab_size=embedding.shape[0],
        head_dim=head_dim,
        tie_word_embeddings="output.weight" not in header.tensors,
        attention_bias="blk.0.attn_q.bias" in header.tensors,
        attention_out_bias="blk.0.attn_output.bias" in header.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in header.tensors,
        torch_dtype=_DTYPES.get(embedding.kind, "float16"),
        **_window_pattern(metadata),
    )
    rotated = metadata.get(Keys.Rope.DIMENSION_COUNT, head_dim)
    if rotated != head_dim:
        if family.pairwise_rope or not isinstance(rotated, int):
            raise WeightsError(f"{path} rotates only a part of each head, which exobus does not do; pick another model")
        settings = settings.replaced(partial_rotary_factor=rotated / head_dim)
    return settings.replaced(rope_scaling=_rope_scaling(header, metadata, settings, path))


def check_whole_model(entries: Mapping[str, Any], path: Path) -> None:
    """Raise WeightsError for a part of a model, and for a file that only goes with one, such as a LoRA adapter."""
    metadata = _Metadata(entries)
    parts = metadata.get(Keys.Split.LLM_KV_SPLIT_COUNT, 0)
    if parts not in (0, 1):
        raise WeightsError(
            f"{path} is one of the {parts} files of a split model; name them as their makers do, "
            "such as model-00001-of-00003.gguf"
        )
    # Projectors of images did not always state their type.
    kind = _PROJECTOR if metadata.architecture == _PROJECTOR else GGUFType.MODEL
    kind = metadata.get(Keys.General.TYPE, kind)
    if kind != GGUFType.MODEL:
        raise WeightsError(f"{path} is of the type {kind!r} and goes with a model; point to the model's own file")


def eos_token_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """List the ids that end an answer: end of sequence and, if the file names them, end of turn and of message."""
    ids = [metadata.get(key) for key in (Keys.Tokenizer.EOS_ID, Keys.Tokenizer.EOT_ID, Keys.Tokenizer.EOM_ID)]
    return tuple(dict.fromkeys(token for token in ids if isinstance(token, int)))


def _shortest(value: Any) -> Any:
    """Return the shortest decimal that float32 rounds to `value`: 9.9999997e-06 in a file was 1e-5 before."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _window_pattern(metadata: _Metadata) -> dict[str, Any]:
    """Read which layers have a window, in the files that say so: by a period, or layer by layer."""
    pattern = metadata.get(Keys.Attention.SLIDING_WINDOW_PATTERN)
    if isinstance(pattern, list):
        return {"layer_types": ["sliding_attention" if window else "full_attention" for window in pattern]}
    return {} if pattern is None else {"sliding_window_pattern": pattern}


def _rope_scaling(header: GgufHeader, metadata: _Metadata, settings: Settings, path: Path) -> dict[str, Any] | None:
    """Read the scaling rule by its name or from tensors of rope factors, which files of Llama 3 and of Phi-3 have.

    As in llama.cpp (`src/llama-model.cpp`) a rule without a name is linear, and a factor of 0 or 1 scales nothing.
    """
    kind = metadata.get(Keys.Rope.SCALING_TYPE, "linear")
    factor = metadata.get(Keys.Rope.SCALING_FACTOR, metadata.get(_SCALE_LINEAR, 0.0))
    stored = header.tensors.get("rope_freqs.weight")
    long, short = (header.tensors.get(f"rope_factors_{length}.weight") for length in ("long", "short"))
    original = metadata.get(Keys.Rope.SCALING_ORIG_CTX_LEN)
    if long is not None and short is not None:
        factors = {"long_factor": read_tensor(path, long).tolist(), "short_factor": read_tensor(path, short).tolist()}
        magnitude = _shortest(metadata.get(Keys.Rope.SCALING_ATTN_FACTOR))
        both = {"original_max_position_embeddings": original, "attention_factor": magnitude}
        return {"rope_type": "longrope", **factors, **both}
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None if stored is None else _llama3_scaling(read_tensor(path, stored), settings, path)
    if stored is not None:
        raise WeightsError(f"{path} scales its rope by two rules; pick the safetensors form of this model")
    ramp = {"beta_fast": Keys.Rope.SCALING_YARN_BETA_FAST, "beta_slow": Keys.Rope.SCALING_YARN_BETA_SLOW}
    given = {name: metadata.get(key) for name, key in ramp.items()} | {"original_max_position_embeddings": original}
    return {"rope_type": kind, "factor": factor} | {name: value for name, value in given.items() if value is not None}


def _llama3_scaling(factors: np.ndarray, settings: Settings, path: Path) -> dict[str, Any]:
    """Find the parameters of Llama 3's rule from each frequency's divisor, and check that the rule gives them."""
    head_dim, theta = settings.count("head_dim"), settings.number("rope_theta", 10000.0)
    if 2 * factors.size != head_dim:
        raise WeightsError(f"{path} has {factors.size} rope factors for heads of {head_dim}; fetch it again")
    scaling = {"factor": float(factors.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rotations = 8192 * theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)
    smooth = np.clip((rotations - 1.0) / 3.0, 0.0, 1.0)
    rule = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    if not np.allclose(rule, factors, rtol=1e-3):
        raise WeightsError(f"{path} scales its rope by an unknown rule; pick the safetensors form of this model")
    return {**scaling, "original_max_position_embeddings": 8192, "rope_type": "llama3"}
