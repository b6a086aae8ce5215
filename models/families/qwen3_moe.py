"""Qwen3 with experts."""

from __future__ import annotations

from gguf import MODEL_ARCH

from models.architecture import Architecture, Layer
from models.families.family import Family
from models.families.parts import architecture, attention, experts, mlp
from models.settings import Settings


def describe(settings: Settings) -> Architecture:
    """Describe a Qwen3 in which each layer, or each `decoder_sparse_step`th one, has experts."""
    step, dense = settings.count("decoder_sparse_step", 1), settings.get("mlp_only_layers", [])
    if not isinstance(dense, list):
        raise settings.unusable("mlp_only_layers")
    # config.json of transformers has false as default; GGUF files do not say, and llama.cpp takes true.
    norm = settings.flag("norm_topk_prob")

    def layer(index: int) -> Layer:
        if index in dense or (index + 1) % step:
            return Layer(attention(settings, index, qk_norm=True), mlp(settings))
        expert = mlp(settings, "moe_intermediate_size")
        chosen = experts(settings, "num_experts", expert, norm_top_k=norm)
        return Layer(attention(settings, index, qk_norm=True), chosen)

    return architecture(settings, layer)


FAMILY = Family(("qwen3_moe",), MODEL_ARCH.QWEN3MOE, describe, single_experts=True)
