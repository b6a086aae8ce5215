"""Granite 3: a Llama with four factors of its own."""

from __future__ import annotations

from gguf import MODEL_ARCH

from models.architecture import Architecture, Layer
from models.families.family import Family
from models.families.parts import architecture, attention, mlp
from models.settings import Settings


def describe(settings: Settings) -> Architecture:
    """Describe a dense Granite. Its logits are divided by `logits_scaling`."""
    scale = settings.number("attention_multiplier")
    return architecture(
        settings,
        lambda index: Layer(attention(settings, index, scale=scale), mlp(settings)),
        embedding_scale=settings.number("embedding_multiplier", 1.0),
        residual_scale=settings.number("residual_multiplier", 1.0),
        logit_scale=1 / settings.number("logits_scaling", 1.0),
    )


FAMILY = Family(("granite",), MODEL_ARCH.GRANITE, describe, pairwise_rope=True)
