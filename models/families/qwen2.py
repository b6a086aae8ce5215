"""Qwen2 and Qwen2.5: biases on queries, keys and values."""

from __future__ import annotations

from gguf import MODEL_ARCH

from models.architecture import Architecture, Layer
from models.families.family import Family
from models.families.parts import architecture, attention, mlp
from models.settings import Settings


def describe(settings: Settings) -> Architecture:
    """Describe a Qwen2. Its window is in the layers from `max_window_layers` on, and mostly switched off."""
    windows = settings.flag("use_sliding_window")
    first = settings.count("max_window_layers", 28) if windows else 0

    def layer(index: int) -> Layer:
        window = settings.count("sliding_window") if windows and index >= first else None
        return Layer(attention(settings, index, qkv_bias=True, out_bias=False, window=window), mlp(settings))

    return architecture(settings, layer)


FAMILY = Family(("qwen2",), MODEL_ARCH.QWEN2, describe)
