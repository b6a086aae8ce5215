"""Gemma 2: windows in every other layer, norms around each part, GELU, and logits that are bounded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gguf import MODEL_ARCH
from ml_dtypes import bfloat16

from models.architecture import Architecture, Layer
from models.families.family import Family
from models.families.parts import architecture, attention, layer_kind, mlp, wide_dtype_of
from models.settings import Settings


def gemma(settings: Settings, period: int, fields: Callable[[str], dict[str, Any]], **changes: Any) -> Architecture:
    """Describe a Gemma with full attention in each `period`th layer.

    `fields` are those of the attention of a kind of layer. The norms' weights are stored less 1, but not in GGUF files.
    The embedding's scale has the dtype of the weights, as in the model's own code.
    """
    dtype = wide_dtype_of(settings)
    scale = math.sqrt(settings.count("hidden_size"))

    def layer(index: int) -> Layer:
        kind = layer_kind(settings, index, "sliding_attention" if (index + 1) % period else "full_attention")
        window = settings.count("sliding_window") if kind == "sliding_attention" else None
        own = attention(settings, index, window=window, **fields(kind))
        return Layer(own, mlp(settings, activation="gelu_pytorch_tanh"), post_norms=True)

    scale = scale if dtype == "float32" else float(bfloat16(scale))
    changes |= {"embedding_scale": scale, "norm_offset": 0.0 if settings.flag("whole_norms") else 1.0}
    tied = settings.flag("tie_word_embeddings", True)
    return architecture(settings, layer, dtype=dtype, tied_embedding=tied, **changes)


def attention_scale(settings: Settings, head_dim: int, largest: int) -> float:
    """Read the scale of attention logits. In GGUF files the largest Gemma is known only by its number of layers."""
    is_largest = settings.get("num_hidden_layers") == largest
    scalar = settings.count("hidden_size") / settings.count("num_attention_heads") if is_largest else head_dim
    scale: float = settings.number("query_pre_attn_scalar", scalar) ** -0.5
    return scale


def describe(settings: Settings) -> Architecture:
    """Describe a Gemma 2."""
    head_dim = settings.count("head_dim", 256)
    settings = settings.replaced(head_dim=head_dim)
    scale = attention_scale(settings, head_dim, largest=46)
    softcap = settings.number("attn_logit_softcapping", 50.0)
    return gemma(
        settings,
        2,
        lambda kind: {"scale": scale, "softcap": softcap},
        logit_softcap=settings.number("final_logit_softcapping", 30.0),
    )


FAMILY = Family(("gemma2",), MODEL_ARCH.GEMMA2, describe)
