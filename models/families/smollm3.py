"""SmolLM3: a Llama in which each fourth layer does not know positions."""

from __future__ import annotations

from gguf import MODEL_ARCH

from models.architecture import Architecture, Layer
from models.families.family import Family
from models.families.parts import architecture, attention, mlp
from models.settings import Settings


def describe(settings: Settings) -> Architecture:
    """Describe a SmolLM3. In `no_rope_layers` a 0 means that the layer has no rope."""
    interval = settings.count("no_rope_layer_interval", 4)
    given = settings.get("no_rope_layers")
    if given is not None and (not isinstance(given, list) or len(given) != settings.get("num_hidden_layers")):
        raise settings.unusable("no_rope_layers")

    def layer(index: int) -> Layer:
        rotated = (index + 1) % interval if given is None else given[index]
        return Layer(attention(settings, index, **({} if rotated else {"rope": None})), mlp(settings))

    return architecture(settings, layer)


FAMILY = Family(("smollm3",), MODEL_ARCH.SMOLLM3, describe, pairwise_rope=True)
