"""gpt-oss: experts with a clipped activation, attention with sinks, and windows in every other layer."""

from __future__ import annotations

import msgspec
from gguf import MODEL_ARCH

from models.architecture import Architecture, Layer, Mlp, Yarn
from models.families.family import Family
from models.families.parts import architecture, attention, experts, layer_kind, wide_dtype_of
from models.families.rope import rope_of
from models.settings import Settings


def describe(settings: Settings) -> Architecture:
    """Describe a gpt-oss. Its YaRN does not round the ends of the ramp, which GGUF files do not say."""
    settings = settings.replaced(head_dim=settings.count("head_dim", 64))
    rope = rope_of(settings, settings.count("head_dim"), theta=150000.0)
    if isinstance(rope.scaling, Yarn):
        rope = msgspec.structs.replace(rope, scaling=msgspec.structs.replace(rope.scaling, truncate=False))
    count = "num_local_experts" if settings.get("num_local_experts") else "num_experts"
    inner = settings.count("moe_intermediate_size", settings.get("intermediate_size"))
    chosen = experts(settings, count, Mlp(inner, "clipped_swiglu", bias=True), router_bias=True)

    def layer(index: int) -> Layer:
        kind = layer_kind(settings, index, "full_attention" if index % 2 else "sliding_attention")
        window = settings.count("sliding_window") if kind == "sliding_attention" else None
        changes = {"rope": rope, "window": window, "qkv_bias": True, "out_bias": True, "sinks": True}
        return Layer(attention(settings, index, **changes), chosen)

    return architecture(settings, layer, dtype=wide_dtype_of(settings))


FAMILY = Family(("gpt_oss",), MODEL_ARCH.GPT_OSS, describe, gguf_only=True)
