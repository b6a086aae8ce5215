"""The sizes of a model of any family, read from its `config.json`. Knows no family's arithmetic and reads no file.

They are what placement and the checks of inputs need. An engine that runs such a model reads `config.json` by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from models.families.parts import dtype_of
from models.settings import Settings
from models.sizes import ModelSizes

_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "n_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers"),
        "hidden_size": ("hidden_size", "n_embd", "d_model", "dim", "model_dim", "hidden_dim"),
        "n_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
        "n_kv_heads": ("num_key_value_heads", "num_kv_heads"),
        "head_dim": ("head_dim", "attention_head_dim"),
        "vocab_size": ("vocab_size",),
        "context_length": ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"),
    }
)
"""Each size's names in configurations, the most usual first."""

_DEFAULTS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {"gemma3": {"vocab_size": 262208, "n_heads": 8, "n_kv_heads": 4, "head_dim": 256, "context_length": 131072}}
)
"""What the configurations of a family leave out, as transformers defines it."""


def any_sizes(settings: Settings) -> ModelSizes:
    """Find the sizes, by whatever name; the context is 2048 if it is not given. Raises WeightsError if one is unusable.

    Those of a model that also sees or hears are in its `text_config`. Where heads are not the unit, as in recurrent
    models, there is one, as wide as the model.
    """
    given = settings.replaced(**settings.group("text_config").values)
    family = str(settings.get("model_type"))
    found = {size: value for size, names in _NAMES.items() if (value := _first(given, names)) is not None}
    sizes = Settings({**_DEFAULTS.get(family, {}), **found}, given.where)
    hidden, heads = sizes.count("hidden_size"), sizes.count("n_heads", 1)
    return ModelSizes(
        model_type=family,
        n_layers=sizes.count("n_layers"),
        hidden_size=hidden,
        n_heads=heads,
        n_kv_heads=sizes.count("n_kv_heads", heads),
        head_dim=sizes.count("head_dim", max(1, hidden // heads)),
        vocab_size=sizes.count("vocab_size"),
        context_length=sizes.count("context_length", 2048),
        tied_embedding=settings.get("tie_word_embeddings", given.get("tie_word_embeddings")) is not False,
        dtype=dtype_of(given),
    )


def _first(settings: Settings, names: tuple[str, ...]) -> Any:
    """Return the first of these settings that is given; None if none is."""
    return next((value for name in names if (value := settings.get(name)) is not None), None)
