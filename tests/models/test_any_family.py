"""Sizes are found whatever a family calls them."""

from __future__ import annotations

from typing import Any

import pytest

from models.any_family import any_sizes
from models.settings import Settings

GPT2 = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
AFM = {"model_type": "afm7", "num_layers": 56, "hidden_dim": 2048, "num_heads": 16, "num_kv_heads": 2, "vocab_size": 99}
MAMBA = {"model_type": "mamba2", "num_hidden_layers": 8, "hidden_size": 64, "vocab_size": 99, "torch_dtype": "float16"}
GEMMA3 = {
    "model_type": "gemma3",
    "torch_dtype": "bfloat16",
    "text_config": {
        "num_hidden_layers": 34,
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
    },
}
PART_NULL = {"model_type": "glm4", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4} | {
    "num_key_value_heads": None,
    "vocab_size": 99,
}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (GPT2, {"n_layers": 12, "hidden_size": 768, "n_kv_heads": 12, "head_dim": 64, "context_length": 1024}),
        (AFM, {"n_layers": 56, "hidden_size": 2048, "n_kv_heads": 2, "head_dim": 128}),
        (MAMBA, {"n_layers": 8, "n_heads": 1, "head_dim": 64, "dtype": "float16", "context_length": 2048}),
        (GEMMA3, {"n_layers": 34, "n_heads": 8, "head_dim": 256, "vocab_size": 262208, "dtype": "bfloat16"}),
        (PART_NULL, {"n_kv_heads": 4, "dtype": "float32"}),
    ],
)
def test_sizes_are_found_under_any_name(given: dict[str, Any], expected: dict[str, Any]) -> None:
    sizes = any_sizes(Settings(given, "the model"))
    assert {name: getattr(sizes, name) for name in expected} == expected
