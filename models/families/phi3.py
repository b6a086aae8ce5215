"""Phi-3 and Phi-4: projections stored as one, and in longer contexts a divisor for each frequency."""

from __future__ import annotations

from gguf import MODEL_ARCH

from models.architecture import Architecture, Layer
from models.families.family import Family
from models.families.parts import architecture, attention, mlp
from models.settings import Settings

FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


def describe(settings: Settings) -> Architecture:
    """Describe a Phi-3."""
    window = settings.count("sliding_window") if settings.get("sliding_window") else None
    return architecture(settings, lambda index: Layer(attention(settings, index, window=window), mlp(settings)))


FAMILY = Family(("phi3",), MODEL_ARCH.PHI3, describe, fused=FUSED)
