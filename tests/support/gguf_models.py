"""Writes tiny random GGUF models of the architectures that the llama.cpp engine may cut, and of two that it may not.

They have no vocabulary unless one is asked for: the engine knows token ids only. The weights are fixed by a seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from tests.support.models import TinyVocabulary, add_gguf_tokenizer

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCAB, CONTEXT = 128, 4, 2, 32, 192, 320, 2048
EXPERTS, USED_EXPERTS, EXPERT_INNER = 4, 2, 96
WINDOW = 24
STATE = 16
Q_WIDTH, KV_WIDTH = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM

Shapes = dict[str, tuple[int, ...]]

_ATTENTION: Shapes = {
    "attn_norm.weight": (HIDDEN,),
    "attn_q.weight": (Q_WIDTH, HIDDEN),
    "attn_k.weight": (KV_WIDTH, HIDDEN),
    "attn_v.weight": (KV_WIDTH, HIDDEN),
    "attn_output.weight": (HIDDEN, Q_WIDTH),
}
_BIASES: Shapes = {"attn_q.bias": (Q_WIDTH,), "attn_k.bias": (KV_WIDTH,), "attn_v.bias": (KV_WIDTH,)}
_HEAD_NORMS: Shapes = {"attn_q_norm.weight": (HEAD_DIM,), "attn_k_norm.weight": (HEAD_DIM,)}
_MLP: Shapes = {
    "ffn_norm.weight": (HIDDEN,),
    "ffn_gate.weight": (INNER, HIDDEN),
    "ffn_up.weight": (INNER, HIDDEN),
    "ffn_down.weight": (HIDDEN, INNER),
}
_PLAIN_MLP: Shapes = {name: shape for name, shape in _MLP.items() if "norm" not in name}
_NORMS_BEHIND: Shapes = {"post_attention_norm.weight": (HIDDEN,), "post_ffw_norm.weight": (HIDDEN,)}
_EXPERTS: Shapes = {
    "ffn_gate_inp.weight": (EXPERTS, HIDDEN),
    "ffn_gate_exps.weight": (EXPERTS, EXPERT_INNER, HIDDEN),
    "ffn_up_exps.weight": (EXPERTS, EXPERT_INNER, HIDDEN),
    "ffn_down_exps.weight": (EXPERTS, HIDDEN, EXPERT_INNER),
}
_SHARED_EXPERT: Shapes = {
    "ffn_gate_inp_shexp.weight": (HIDDEN,),
    "ffn_gate_shexp.weight": (INNER, HIDDEN),
    "ffn_up_shexp.weight": (INNER, HIDDEN),
    "ffn_down_shexp.weight": (HIDDEN, INNER),
}
_EXPERT_BIASES: Shapes = {
    "ffn_gate_inp.bias": (EXPERTS,),
    "ffn_gate_exps.bias": (EXPERTS, EXPERT_INNER),
    "ffn_up_exps.bias": (EXPERTS, EXPERT_INNER),
    "ffn_down_exps.bias": (EXPERTS, HIDDEN),
}
_EXPERT_KEYS = {
    "expert_count": EXPERTS,
    "expert_used_count": USED_EXPERTS,
    "expert_feed_forward_length": EXPERT_INNER,
}


@dataclass(frozen=True)
class Family:
    """The tensors of one layer, metadata beside the sizes, by key without the architecture, and how many layers.

    `normed` says whether a norm with weights stands before the head.
    """

    layer: Shapes
    keys: Mapping[str, int | float] = field(default_factory=dict)
    n_layers: int = 5
    tied: bool = False
    normed: bool = True


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family(_ATTENTION | _MLP),
        "qwen2": Family(_ATTENTION | _BIASES | _MLP, tied=True),
        "qwen3": Family(_ATTENTION | _HEAD_NORMS | _MLP, tied=True),
        "gemma3": Family(
            _ATTENTION | _HEAD_NORMS | _MLP | _NORMS_BEHIND,
            {"attention.sliding_window": WINDOW},
            n_layers=9,
            tied=True,
        ),
        "phi3": Family(
            {
                "attn_norm.weight": (HIDDEN,),
                "attn_qkv.weight": (Q_WIDTH + 2 * KV_WIDTH, HIDDEN),
                "attn_output.weight": (HIDDEN, Q_WIDTH),
                "ffn_norm.weight": (HIDDEN,),
                "ffn_up.weight": (2 * INNER, HIDDEN),
                "ffn_down.weight": (HIDDEN, INNER),
            },
        ),
        "smollm3": Family(_ATTENTION | _MLP, n_layers=10, tied=True),
        "granite": Family(
            _ATTENTION | _MLP,
            {"embedding_scale": 12.0, "residual_scale": 0.22, "attention.scale": 0.0156, "logit_scale": 8.0},
        ),
        "qwen3moe": Family(_ATTENTION | _HEAD_NORMS | {"ffn_norm.weight": (HIDDEN,)} | _EXPERTS, _EXPERT_KEYS),
        "gpt-oss": Family(
            _ATTENTION
            | _BIASES
            | {"attn_output.bias": (HIDDEN,), "attn_sinks.weight": (HEADS,), "post_attention_norm.weight": (HIDDEN,)}
            | _EXPERTS
            | _EXPERT_BIASES,
            {**_EXPERT_KEYS, "attention.sliding_window": WINDOW},
            n_layers=6,
        ),
        "mistral3": Family(_ATTENTION | _MLP),
        "seed_oss": Family(_ATTENTION | _BIASES | {"post_attention_norm.weight": (HIDDEN,)} | _PLAIN_MLP),
        "cohere2": Family(
            _ATTENTION | _PLAIN_MLP,
            {"attention.sliding_window": WINDOW, "attention.layer_norm_epsilon": 1e-5, "logit_scale": 0.25},
            n_layers=6,
            tied=True,
        ),
        "olmo2": Family(
            {name: shape for name, shape in _ATTENTION.items() if "norm" not in name}
            | {"attn_q_norm.weight": (Q_WIDTH,), "attn_k_norm.weight": (KV_WIDTH,)}
            | _PLAIN_MLP
            | _NORMS_BEHIND,
            {"attention.sliding_window": WINDOW},
            n_layers=6,
        ),
        "qwen2moe": Family(
            _ATTENTION | _BIASES | {"ffn_norm.weight": (HIDDEN,)} | _EXPERTS | _SHARED_EXPERT,
            {**_EXPERT_KEYS, "expert_shared_feed_forward_length": INNER},
        ),
        "olmo": Family(
            {name: shape for name, shape in (_ATTENTION | _MLP).items() if "norm" not in name},
            {"attention.layer_norm_epsilon": 1e-5},
            normed=False,
        ),
        "mamba": Family(
            {
                "attn_norm.weight": (HIDDEN,),
                "ssm_in.weight": (4 * HIDDEN, HIDDEN),
                "ssm_conv1d.weight": (2 * HIDDEN, 4),
                "ssm_conv1d.bias": (2 * HIDDEN,),
                "ssm_x.weight": (HIDDEN // 16 + 2 * STATE, 2 * HIDDEN),
                "ssm_dt.weight": (2 * HIDDEN, HIDDEN // 16),
                "ssm_dt.bias": (2 * HIDDEN,),
                "ssm_a": (2 * HIDDEN, STATE),
                "ssm_d": (2 * HIDDEN,),
                "ssm_out.weight": (HIDDEN, 2 * HIDDEN),
            },
            {
                "ssm.conv_kernel": 4,
                "ssm.inner_size": 2 * HIDDEN,
                "ssm.state_size": STATE,
                "ssm.time_step_rank": HIDDEN // 16,
            },
        ),
    }
)


def write_model(
    path: Path,
    architecture: str,
    quantization: str = "F32",
    vocabulary: TinyVocabulary | None = None,
    **keys: int | float | list[bool] | list[int],
) -> Path:
    """Write a model and return its path. Matrices are in `quantization`, the rest in F32; `keys` are more metadata."""
    family = FAMILIES[architecture]
    writer = GGUFWriter(str(path), architecture)
    if vocabulary is None:
        writer.add_tokenizer_model("no_vocab")
    else:
        add_gguf_tokenizer(writer, VOCAB, vocabulary)
    values = {**_sizes(family), **family.keys, **{key.replace("__", "."): value for key, value in keys.items()}}
    for key, value in values.items():
        _add(writer, f"{architecture}.{key}", value)
    random = np.random.default_rng(len(architecture))
    for name, shape in _tensors(family).items():
        tensor = _random_tensor(random, name, shape)
        kind = GGMLQuantizationType[quantization if len(shape) > 1 and "bias" not in name else "F32"]
        writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _sizes(family: Family) -> dict[str, int | float]:
    return {
        "block_count": family.n_layers,
        "context_length": CONTEXT,
        "embedding_length": HIDDEN,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": HEAD_DIM,
        "rope.freq_base": 10000.0,
        "vocab_size": VOCAB,
    }


def _tensors(family: Family) -> Shapes:
    ends: Shapes = {"token_embd.weight": (VOCAB, HIDDEN)}
    if family.normed:
        ends["output_norm.weight"] = (HIDDEN,)
    if not family.tied:
        ends["output.weight"] = (VOCAB, HIDDEN)
    return ends | {f"blk.{i}.{name}": shape for i in range(family.n_layers) for name, shape in family.layer.items()}


def _random_tensor(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = random.standard_normal(shape, dtype=np.float32)
    if "norm" in name:
        return np.float32(1) + np.float32(0.1) * noise
    return noise * np.float32(0.1) if len(shape) == 1 or "bias" in name else noise / np.float32(np.sqrt(shape[-1]))


def _add(writer: GGUFWriter, key: str, value: int | float | list[bool] | list[int]) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_float32(key, value)
