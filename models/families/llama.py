"""Llama and Mistral."""

from __future__ import annotations

from gguf import MODEL_ARCH

from models.architecture import Architecture, Layer
from models.families.family import Family
from models.families.parts import architecture, attention, mlp
from models.settings import Settings


def describe(settings: Settings) -> Architecture:
    """Describe a Llama. Mistral's first version has a window in all layers."""
    is_mistral = settings.get("model_type") == "mistral" and not settings.get("layer_types")
    changes = {"window": settings.count("sliding_window")} if is_mistral and settings.get("sliding_window") else {}
    return architecture(settings, lambda index: Layer(attention(settings, index, **changes), mlp(settings)))


FAMILY = Family(("llama", "mistral"), MODEL_ARCH.LLAMA, describe, pairwise_rope=True)
