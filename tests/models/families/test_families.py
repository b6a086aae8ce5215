"""Real settings become the right description: models have the number of parameters that their authors state."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.shard import Shard, whole
from models.architecture import Architecture, Experts, LongRope, Yarn
from models.errors import WeightsError
from models.families import described
from models.families.rope import RULES
from models.settings import Settings
from models.sizes import FLOAT32_BYTES, kv_bytes, position_bytes, weight_bytes
from models.weights.checkpoint import tensor_shapes
from tests.support.family_models import CONFIGS

REAL: dict[str, tuple[dict[str, Any], int]] = {
    "Llama-3.2-1B": (
        {
            "model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads": 32,
            "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True,
        },
        1_235_814_400,
    ),
    "Qwen2.5-0.5B": (
        {
            "model_type": "qwen2", "num_hidden_layers": 24, "hidden_size": 896, "num_attention_heads": 14,
            "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True,
            "use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 24,
        },
        494_032_768,
    ),
    "Qwen3-0.6B": (
        {
            "model_type": "qwen3", "num_hidden_layers": 28, "hidden_size": 1024, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        596_049_920,
    ),
    "Qwen3-30B-A3B": (
        {
            "model_type": "qwen3_moe", "num_hidden_layers": 48, "hidden_size": 2048, "num_attention_heads": 32,
            "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144, "vocab_size": 151936,
            "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True,
        },
        30_532_122_624,
    ),
    "gemma-3-1b": (
        {
            "model_type": "gemma3_text", "num_hidden_layers": 26, "hidden_size": 1152, "num_attention_heads": 4,
            "num_key_value_heads": 1, "head_dim": 256, "intermediate_size": 6912, "vocab_size": 262144,
            "sliding_window": 512, "max_position_embeddings": 32768, "hidden_activation": "gelu_pytorch_tanh",
            "torch_dtype": "bfloat16",
        },
        999_885_952,
    ),
    "Phi-4-mini": (
        {
            "model_type": "phi3", "num_hidden_layers": 32, "hidden_size": 3072, "num_attention_heads": 24,
            "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 200064, "tie_word_embeddings": True,
            "partial_rotary_factor": 0.75, "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096, "sliding_window": 262144,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
        },
        3_836_021_760,
    ),
    "SmolLM3-3B": (
        {
            "model_type": "smollm3", "num_hidden_layers": 36, "hidden_size": 2048, "num_attention_heads": 16,
            "num_key_value_heads": 4, "intermediate_size": 11008, "vocab_size": 128256, "tie_word_embeddings": True,
            "no_rope_layers": [1, 1, 1, 0] * 9,
        },
        3_075_098_624,
    ),
    "gpt-oss-20b": (
        {
            "model_type": "gpt_oss", "num_hidden_layers": 24, "hidden_size": 2880, "num_attention_heads": 64,
            "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 2880, "vocab_size": 201088,
            "num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128, "torch_dtype": "bfloat16",
            "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096},
        },
        20_914_757_184,
    ),
}  # fmt: skip


SCALING = {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
SCALING_KEYS = [*SCALING, "rope_type", "type", "rope_theta", "long_factor", "full_attention", "sliding_attention"]


def real(name: str, **changes: Any) -> Architecture:
    return described(Settings(REAL[name][0] | changes, name))


@pytest.mark.parametrize("name", REAL)
def test_model_has_the_parameters_that_its_authors_state(name: str) -> None:
    architecture = real(name)
    assert weight_bytes(architecture, whole(name, architecture.n_layers)) == FLOAT32_BYTES * REAL[name][1]


def test_gemma_has_windows_in_five_of_six_layers() -> None:
    gemma = real("gemma-3-1b")
    windows = [layer.attention.window for layer in gemma.layers]
    assert windows == ([512] * 5 + [None]) * 4 + [512] * 2
    thetas = {layer.attention.window: layer.attention.rope.theta for layer in gemma.layers if layer.attention.rope}
    assert thetas == {512: 10000.0, None: 1000000.0}
    assert gemma.embedding_scale == 34.0  # sqrt(1152) in bfloat16


@pytest.mark.parametrize(("model_type", "window"), [("mistral", 4096), ("llama", None)])
def test_window_in_all_layers_is_for_mistral_only(model_type: str, window: int | None) -> None:
    architecture = real("Llama-3.2-1B", model_type=model_type, sliding_window=4096)
    assert {layer.attention.window for layer in architecture.layers} == {window}


@pytest.mark.parametrize(("name", "layers"), [("gemma2", 46), ("gemma3_text", 62)])
def test_largest_gemma_scales_by_its_width(name: str, layers: int) -> None:
    unsaid = {**CONFIGS[name], "hidden_size": 640, "query_pre_attn_scalar": None}
    smaller = described(Settings({**unsaid, "num_hidden_layers": layers - 1}, name))
    assert smaller.heads.scale == smaller.heads.head_dim**-0.5
    assert described(Settings({**unsaid, "num_hidden_layers": layers}, name)).heads.scale == 160**-0.5


def test_window_bounds_the_bytes_of_keys_and_values() -> None:
    gemma, shard = real("gemma-3-1b"), Shard("gemma", 0, 6, 26)
    position = 2 * 1 * 256 * FLOAT32_BYTES
    assert position_bytes(gemma, shard) == 6 * position
    assert kv_bytes(gemma, shard, 512) == 512 * 6 * position
    assert kv_bytes(gemma, shard, 4096) == (4096 + 5 * 512) * position


def test_newer_rope_parameters_of_gemma_are_read() -> None:
    kinds = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}
    newer = kinds | {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    older = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    assert real("gemma-3-1b", rope_parameters=newer) == real("gemma-3-1b", **older)


def test_newer_rope_parameters_are_read() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    newer = real("Qwen3-0.6B", rope_parameters={"rope_theta": 1e6, **scaling})
    assert newer == real("Qwen3-0.6B", rope_theta=1e6, rope_scaling=scaling)
    assert newer.heads.rope is not None
    assert newer.heads.rope.scaling == Yarn(4.0, 32768, 32.0, 1.0, 0.1 * math.log(4) + 1, True)


def test_long_context_takes_the_divisors_for_long_texts() -> None:
    rope = real("Phi-4-mini").heads.rope
    assert rope is not None
    assert rope.dims == 96
    assert rope.scaling == LongRope((2.0,) * 48, math.sqrt(1 + math.log(32) / math.log(4096)))
    short = real("Phi-4-mini", max_position_embeddings=4096).heads.rope
    assert short is not None
    assert short.scaling == LongRope((1.0,) * 48, 1.0)


def test_every_fourth_layer_of_smollm3_has_no_rope() -> None:
    listed = real("SmolLM3-3B")
    assert [layer.attention.rope is None for layer in listed.layers] == [False, False, False, True] * 9
    assert real("SmolLM3-3B", no_rope_layers=None) == listed


def test_named_layers_of_qwen3_moe_are_dense() -> None:
    mixed = real("Qwen3-30B-A3B", num_hidden_layers=4, mlp_only_layers=[2], decoder_sparse_step=2)
    assert [isinstance(layer.feed_forward, Experts) for layer in mixed.layers] == [False, True, False, True]


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "gpt_oss"])
def test_family_beyond_the_range_of_float16_is_computed_in_bfloat16(name: str) -> None:
    assert described(Settings({**CONFIGS[name], "torch_dtype": "float16"}, name)).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("qwen3", {"layer_types": ["linear_attention"] * 3}, "layers of the kind 'linear_attention'"),
        ("qwen3", {"num_experts": 8}, "has experts, which exobus does not run in this family"),
        ("gemma3_text", {"hidden_activation": "gelu"}, "the activation 'gelu', and exobus has silu, gelu_pytorch_tanh"),
        ("gemma3_text", {"sliding_window": 0}, "sliding_window as 0"),
        ("phi3", {"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, "long_factor"),
        ("phi3", {"partial_rotary_factor": 0.1}, "partial_rotary_factor"),
        ("granite", {"attention_multiplier": None}, "does not say its attention_multiplier"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers"),
        ("qwen3_moe", {"num_experts_per_tok": 7}, "num_experts_per_tok"),
    ],
)
def test_unusable_setting_is_refused_by_name(name: str, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(WeightsError, match=f"{name} .*{sentence}"):
        described(Settings({**CONFIGS[name], **change}, name))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1 << 40) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(SCALING_KEYS), inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=100)
@given(st.sampled_from(sorted(CONFIGS)), st.data())
def test_any_value_is_described_or_refused(name: str, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted({*CONFIGS[name], "rope_parameters", "layer_types", "head_dim"})))
    value = data.draw(VALUES | st.sampled_from(list(RULES)).map(lambda rule: {**SCALING, "rope_type": rule}))
    with suppress(WeightsError):
        architecture = described(Settings({**CONFIGS[name], key: value}, name))
        assert tensor_shapes(architecture, whole(name, architecture.n_layers))
