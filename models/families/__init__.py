"""The families of models that exobus describes, each in a file of its own. Reads no file."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gguf import MODEL_ARCH_NAMES

from models.architecture import Architecture, Experts
from models.families import gemma2, gemma3, gpt_oss, granite, llama, phi3, qwen2, qwen3, qwen3_moe, smollm3
from models.families.family import Family
from models.settings import Settings

_MODULES = (llama, qwen2, qwen3, qwen3_moe, gemma2, gemma3, phi3, smollm3, granite, gpt_oss)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {model_type: module.FAMILY for module in _MODULES for model_type in module.FAMILY.model_types}
)
"""By `model_type`."""

GGUF_FAMILIES: Mapping[str, Family] = MappingProxyType(
    {MODEL_ARCH_NAMES[module.FAMILY.gguf]: module.FAMILY for module in _MODULES}
)
"""By `general.architecture`."""


def described(settings: Settings) -> Architecture:
    """Describe the model. Raises WeightsError for an unknown family, and for what a family has not, such as experts."""
    model_type = settings.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        known = ", ".join(FAMILIES)
        raise settings.unsupported(f"is of the family {model_type!r}, and exobus runs {known}")
    architecture = family.describe(settings)
    has_experts = any(isinstance(layer.feed_forward, Experts) for layer in architecture.layers)
    if settings.get("num_experts") and not has_experts:
        raise settings.unsupported("has experts, which exobus does not run in this family")
    return architecture
