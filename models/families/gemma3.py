"""Gemma 3, text only: a Gemma with windows in five of six layers, two ropes, and norms of queries and keys."""

from __future__ import annotations

from gguf import MODEL_ARCH

from models.architecture import Architecture, Rope
from models.families.family import Family
from models.families.gemma2 import attention_scale, gemma
from models.families.rope import rope_of
from models.settings import Settings


def describe(settings: Settings) -> Architecture:
    """Describe a Gemma 3."""
    head_dim = settings.count("head_dim", 256)
    settings = settings.replaced(head_dim=head_dim)
    scale = attention_scale(settings, head_dim, largest=62)
    ropes = _ropes(settings, head_dim)
    period = settings.count("sliding_window_pattern", 6)
    return gemma(settings, period, lambda kind: {"rope": ropes[kind], "scale": scale, "qk_norm": True})


def _ropes(settings: Settings, head_dim: int) -> dict[str, Rope]:
    """Read the rope of each kind of layer. Scaling is for layers without a window."""
    newer = settings.group("rope_parameters")
    if newer.get("full_attention"):
        kinds = ("full_attention", "sliding_attention")
        return {kind: rope_of(newer.replaced(rope_parameters=newer.group(kind).values), head_dim) for kind in kinds}
    near = Rope(settings.number("rope_local_base_freq", 10000.0), head_dim)
    return {"full_attention": rope_of(settings, head_dim, theta=1e6), "sliding_attention": near}


FAMILY = Family(("gemma3_text",), MODEL_ARCH.GEMMA3, describe)
