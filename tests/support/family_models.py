"""Writes a tiny model of each family to disk, as its safetensors folder and its GGUF file are. The weights are random.

The settings have the shape of real ones, at small sizes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType

from cluster.shard import whole
from models.architecture import Architecture
from models.families import FAMILIES, described
from models.settings import Settings
from models.weights.checkpoint import tensor_shapes
from models.weights.layout import places
from tests.support.models import LLAMA3_SCALING, interleaved, write_safetensors

VOCABULARY = 96
SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}
LLAMA = SIZES | {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
MOE = SIZES | {
    "model_type": "qwen3_moe",
    "head_dim": 32,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
GELU = {"hidden_activation": "gelu_pytorch_tanh"}
CONFIGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llama3 rope": LLAMA | {"rope_scaling": LLAMA3_SCALING, "tie_word_embeddings": False},
        "yarn rope": LLAMA | {"rope_scaling": YARN},
        "mistral with windows": LLAMA
        | {
            "model_type": "mistral",
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "sliding_window": 8,
        },
        "qwen2": SIZES | {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 128},
        "qwen3": SIZES | {"model_type": "qwen3", "head_dim": 32, "attention_bias": False},
        "qwen3_moe": MOE,
        "qwen3_moe with a dense layer": MOE | {"mlp_only_layers": [1], "norm_topk_prob": False},
        "gemma2": SIZES
        | GELU
        | {
            "model_type": "gemma2",
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
            "sliding_window": 64,  # mlx-lm leaves it out
        },
        "gemma3_text": SIZES
        | GELU
        | {
            "model_type": "gemma3_text",
            "num_hidden_layers": 7,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window": 8,
            "sliding_window_pattern": 6,
        },
        "phi3": SIZES
        | {
            "model_type": "phi3",
            "hidden_size": 128,
            "partial_rotary_factor": 0.5,
            "tie_word_embeddings": False,
            "original_max_position_embeddings": 64,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0] * 6 + [1.1, 1.2],
                "long_factor": [1.0, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 6.0],
            },
        },
        "smollm3": LLAMA | {"model_type": "smollm3", "num_hidden_layers": 5, "no_rope_layer_interval": 4},
        "granite": LLAMA
        | {
            "model_type": "granite",
            "attention_multiplier": 0.1,
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.4,
            "logits_scaling": 4.0,
        },
        "gpt_oss": SIZES
        | {
            "model_type": "gpt_oss",
            "num_hidden_layers": 4,
            "head_dim": 32,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_theta": 2.0,  # both ends of the ramp are outside, since mlx-lm rounds them and the model does not
            "rope_scaling": YARN | {"original_max_position_embeddings": 128},
            "tie_word_embeddings": False,
        },
    }
)
"""A config.json for each family, and for what a family may have."""

_GGUF_KEYS = {
    "num_hidden_layers": GGUFWriter.add_block_count,
    "hidden_size": GGUFWriter.add_embedding_length,
    "intermediate_size": GGUFWriter.add_feed_forward_length,
    "num_attention_heads": GGUFWriter.add_head_count,
    "num_key_value_heads": GGUFWriter.add_head_count_kv,
    "head_dim": GGUFWriter.add_key_length,
    "rms_norm_eps": GGUFWriter.add_layer_norm_rms_eps,
    "rope_theta": GGUFWriter.add_rope_freq_base,
    "max_position_embeddings": GGUFWriter.add_context_length,
    "sliding_window": GGUFWriter.add_sliding_window,
    "num_experts": GGUFWriter.add_expert_count,
    "num_local_experts": GGUFWriter.add_expert_count,
    "num_experts_per_tok": GGUFWriter.add_expert_used_count,
    "moe_intermediate_size": GGUFWriter.add_expert_feed_forward_length,
    "attn_logit_softcapping": GGUFWriter.add_attn_logit_softcapping,
    "final_logit_softcapping": GGUFWriter.add_final_logit_softcapping,
    "attention_multiplier": GGUFWriter.add_attention_scale,
    "embedding_multiplier": GGUFWriter.add_embedding_scale,
    "residual_multiplier": GGUFWriter.add_residual_scale,
    "logits_scaling": GGUFWriter.add_logit_scale,
}


def tiny_architecture(name: str) -> Architecture:
    """Describe one of the tiny models."""
    return described(Settings(CONFIGS[name], name))


def stored_tensors(architecture: Architecture, *, single_experts: bool) -> dict[str, np.ndarray]:
    """Make the tensors of a model as its family stores them, under checkpoint names."""
    random = np.random.default_rng(0)
    shard = whole("tiny", architecture.n_layers)
    stored: dict[str, np.ndarray] = {}
    found = places(architecture, shard, single_experts=single_experts)
    for name, shape in tensor_shapes(architecture, shard).items():
        place, tensor = found[name], _random_tensor(random, architecture, name, shape)
        for part, rows in zip(place.names, tensor if len(place.names) > 1 else [tensor], strict=True):
            whole_one = stored.setdefault(part, np.empty(place.shape, np.float32))
            whole_one[place.start : place.start + place.rows] = rows
    return stored


def _random_tensor(
    random: np.random.Generator, architecture: Architecture, name: str, shape: tuple[int, ...]
) -> np.ndarray:
    noise = random.standard_normal(shape, dtype=np.float32)
    if "norm" in name:
        return np.float32(1 - architecture.norm_offset) + np.float32(0.1) * noise
    if name.endswith("sinks"):
        return noise
    return np.float32(0.1) * noise if name.endswith(".bias") else noise / np.float32(np.sqrt(shape[-1]))


class DescribedWeights:
    """Random weights of any description, in memory."""

    repository = None

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.settings: Mapping[str, Any] = {}
        random = np.random.default_rng(0)
        shapes = tensor_shapes(architecture, whole("described", architecture.n_layers))
        self._tensors = {name: _random_tensor(random, architecture, name, shape) for name, shape in shapes.items()}

    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def tensor(self, name: str) -> np.ndarray:
        return self._tensors[name].copy()

    def blocks(self, name: str) -> None:
        """Return None: no matrix is quantized."""

    def form(self, name: str) -> None:
        """Return None, as `blocks` does."""


def write_family_folder(folder: Path, name: str) -> Path:
    """Write config.json and the weights, and return the folder."""
    architecture = tiny_architecture(name)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(CONFIGS[name])))
    single = FAMILIES[architecture.family].single_experts
    write_safetensors(folder / "model.safetensors", stored_tensors(architecture, single_experts=single), "float32")
    return folder


def write_family_gguf(path: Path, name: str, experts: GGMLQuantizationType = GGMLQuantizationType.F32) -> Path:
    """Write the same model as llama.cpp's converter does, all but the experts in float32, and return the path."""
    config, architecture = CONFIGS[name], tiny_architecture(name)
    family = FAMILIES[architecture.family]
    writer = GGUFWriter(str(path), gguf.MODEL_ARCH_NAMES[family.gguf])
    for key, add in _GGUF_KEYS.items():
        if key in config:
            add(writer, config[key])
    writer.add_rope_dimension_count(architecture.heads.rope.dims if architecture.heads.rope else 0)
    _add_rope_scaling(writer, config)
    known = gguf.get_tensor_name_map(family.gguf, architecture.n_layers)
    for stored, tensor in stored_tensors(architecture, single_experts=False).items():
        if family.pairwise_rope and ("q_proj" in stored or "k_proj" in stored):
            heads = architecture.heads
            tensor = interleaved(tensor, heads.heads if "q_proj" in stored else heads.kv_heads)
        if "norm" in stored:
            tensor = tensor + np.float32(architecture.norm_offset)
        found = known.get_name(stored, (".weight", ".bias"))
        found = f"{found}.weight" if stored.endswith("sinks") else found
        kind = experts if "exps.weight" in found else GGMLQuantizationType.F32
        writer.add_tensor(found, gguf.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_rope_scaling(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    """Write the scaling rule: by name, or by the tensors that stand for it."""
    scaling = config.get("rope_scaling")
    if scaling is None:
        return
    kind = scaling.get("rope_type") or scaling["type"]
    if kind == "longrope":
        for length in ("long", "short"):
            writer.add_tensor(f"rope_factors_{length}.weight", np.array(scaling[f"{length}_factor"], np.float32))
        writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
        return
    writer.add_rope_scaling_type(RopeScalingType(kind))
    writer.add_rope_scaling_factor(scaling["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
