"""The sizes of a model of any family, read from its `config.json`. Knows no family's arithmetic.

They are what placement and the checks of inputs need. An engine that runs such a model reads `config.json` by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "n_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers"),
        "hidden_size": ("hidden_size", "n_embd", "d_model", "dim", "model_dim"),
        "n_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
        "n_kv_heads": ("num_key_value_heads", "num_kv_heads"),
        "head_dim": ("head_dim", "attention_head_dim"),
        "intermediate_size": ("intermediate_size", "ffn_hidden_size", "moe_intermediate_size"),
        "vocab_size": ("vocab_size",),
        "context_length": ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"),
    }
)
"""Each size's names in configurations, the most usual first."""

_DEFAULTS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {"gemma3": {"vocab_size": 262208, "n_heads": 8, "n_kv_heads": 4, "head_dim": 256, "context_length": 131072}}
)
"""What the configurations of a family leave out, as transformers defines it."""


def sizes_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a `ModelConfig` that a configuration gives; the context is 2048 if it is not given.

    Those of a model that also sees or hears are in its `text_config`. Where heads are not the unit, as in recurrent
    models, there is one, as wide as the model. Rope and norms have the usual constants, which nobody uses.
    """
    text = config.get("text_config")
    given = {**config, **text} if isinstance(text, dict) else dict(config)
    sizes = dict(_DEFAULTS.get(str(config.get("model_type")), {}))
    sizes |= {size: value for size, names in _NAMES.items() if isinstance(value := _first(given, names), int)}
    heads = sizes.setdefault("n_heads", 1)
    sizes.setdefault("n_kv_heads", heads)
    if heads > 0 and "hidden_size" in sizes:
        sizes.setdefault("head_dim", max(1, sizes["hidden_size"] // heads))
        sizes.setdefault("intermediate_size", sizes["hidden_size"])
    tied = _first(given, ("tie_word_embeddings",)) is not False
    constants = {"model_type": config.get("model_type"), "rope_theta": 10000.0, "rms_norm_eps": 1e-6}
    dtype = _first(given, ("torch_dtype", "dtype")) or "float32"
    return {"context_length": 2048, "dtype": dtype, "tie_word_embeddings": tied} | constants | sizes


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """Return the first of these values that is given and not null."""
    return next((config[name] for name in names if config.get(name) is not None), None)
