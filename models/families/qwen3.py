"""Qwen3: each head of queries and keys is normed."""

from __future__ import annotations

from gguf import MODEL_ARCH

from models.architecture import Architecture, Layer
from models.families.family import Family
from models.families.parts import architecture, attention, mlp
from models.settings import Settings


def describe(settings: Settings) -> Architecture:
    """Describe a dense Qwen3."""
    return architecture(settings, lambda index: Layer(attention(settings, index, qk_norm=True), mlp(settings)))


FAMILY = Family(("qwen3",), MODEL_ARCH.QWEN3, describe)
