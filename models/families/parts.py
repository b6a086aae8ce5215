"""The parts that families are made of: attention, feed-forward network and the whole, with the settings all share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models.architecture import DTYPES, Activation, Architecture, Attention, Dtype, Experts, Layer, Mlp
from models.families.rope import rope_of
from models.settings import Settings

MOST_LAYERS = MOST_EXPERTS = 512
ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def attention(settings: Settings, index: int, **changes: Any) -> Attention:
    """Describe the attention of layer `index`. `changes` are fields that the family decides. Raises WeightsError."""
    heads, hidden = settings.count("num_attention_heads"), settings.count("hidden_size")
    kv_heads = settings.count("num_key_value_heads", heads)
    head_dim = settings.count("head_dim", max(hidden // heads, 1))
    if heads % kv_heads or head_dim % 2:
        raise settings.unsupported("has heads that do not divide evenly")
    bias = settings.flag("attention_bias")
    fields: dict[str, Any] = {"scale": head_dim**-0.5, "qkv_bias": bias}
    fields["out_bias"] = settings.flag("attention_out_bias", bias)
    if "rope" not in changes:
        fields["rope"] = rope_of(settings, head_dim)
    if layer_kind(settings, index) == "sliding_attention":
        fields["window"] = settings.count("sliding_window")
    return Attention(heads=heads, kv_heads=kv_heads, head_dim=head_dim, **fields | changes)


def layer_kind(settings: Settings, index: int, default: str = "full_attention") -> str:
    """Return `full_attention` or `sliding_attention`. Raises WeightsError for another kind of layer."""
    kinds = settings.get("layer_types", [default] * (index + 1))
    if not isinstance(kinds, list) or index >= len(kinds):
        raise settings.unusable("layer_types")
    if kinds[index] not in ("full_attention", "sliding_attention"):
        raise settings.unsupported(f"has layers of the kind {kinds[index]!r}, which exobus does not run")
    return str(kinds[index])


def mlp(settings: Settings, size: str = "intermediate_size", activation: str = "silu") -> Mlp:
    """Describe a feed-forward network as wide as the setting `size`. Raises WeightsError.

    `activation` is that of the family, for files that do not say.
    """
    name = settings.text("hidden_activation", settings.text("hidden_act", activation))
    if name not in ACTIVATIONS:
        raise settings.unsupported(f"asks for the activation {name!r}, and exobus has {', '.join(ACTIVATIONS)}")
    return Mlp(settings.count(size), ACTIVATIONS[name], settings.flag("mlp_bias"))


def experts(settings: Settings, count: str, expert: Mlp, **changes: Any) -> Experts:
    """Describe experts, as many as the setting `count`. `changes` are fields that the family decides."""
    number = settings.count(count, most=MOST_EXPERTS)
    return Experts(number, settings.count("num_experts_per_tok", most=number), expert, **changes)


def architecture(settings: Settings, layer: Callable[[int], Layer], **changes: Any) -> Architecture:
    """Describe a whole model, layer by layer. `changes` are fields that the family decides. Raises WeightsError."""
    fields: dict[str, Any] = {
        "family": settings.get("model_type"),
        "layers": tuple(layer(index) for index in range(settings.count("num_hidden_layers", most=MOST_LAYERS))),
        "hidden_size": settings.count("hidden_size"),
        "vocab_size": settings.count("vocab_size"),
        "context_length": settings.count("max_position_embeddings", 2048),
        "norm_eps": settings.number("rms_norm_eps", 1e-6, most=1.0),
        "tied_embedding": settings.flag("tie_word_embeddings"),
        "dtype": dtype_of(settings),
    }
    return Architecture(**fields | changes)


def dtype_of(settings: Settings) -> Dtype:
    """Read the dtype of the weights. Raises WeightsError for one that exobus does not read."""
    dtype: Dtype = settings.get("torch_dtype", settings.get("dtype", "float32"))
    if dtype not in DTYPES:
        raise settings.unsupported(f"stores {dtype}, but exobus reads {', '.join(DTYPES)}")
    return dtype


def wide_dtype_of(settings: Settings) -> Dtype:
    """Read the dtype, and take bfloat16 for float16: the hidden states of some families leave float16's range."""
    dtype = dtype_of(settings)
    return "bfloat16" if dtype == "float16" else dtype
