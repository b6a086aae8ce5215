"""Where the models of each architecture may be cut, and what a part of one has to say of itself.

llama.cpp numbers the layers of a file from 0 and derives from the number what a layer is. So a file that begins with
layer 5 must state what its layers are, or may begin at certain layers only. An architecture that is not in RULES runs
on one node only: a part of it might compute other numbers than the whole, and no error would show it. The sweep in
`tests/engines/llamacpp/test_sweep.py` compares every cut of every architecture in RULES bit for bit. It runs small
models, so it cannot see what depends on the number of a model's layers: that was read in `src/models/` of llama.cpp
0.5.0, and has to be read again for each version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from cluster.shard import Shard
from engines.errors import NotInParts


@dataclass(frozen=True)
class CutRule:
    """What holds for one architecture.

    Of each `window_period` layers, all but the last attend within a window; 0 if the file says which, or none does.
    `multiple`: parts begin at multiples of it. `scaled`: the embedding's output is multiplied by a factor, also that of
    hidden states that come from outside. `special_size`: with so many layers, a model or a part is computed in another
    way than with any other number.
    """

    window_period: int = 0
    multiple: int = 1
    scaled: bool = False
    special_size: int = 0


RULES: Mapping[str, CutRule] = MappingProxyType(
    {
        "cohere2": CutRule(window_period=4),
        "gemma3": CutRule(window_period=6, special_size=62),  # the 27B model scales its attention otherwise
        "gpt-oss": CutRule(window_period=2),
        "granite": CutRule(scaled=True),
        "llama": CutRule(),  # also Mistral
        "mistral3": CutRule(),
        "olmo2": CutRule(window_period=4),  # also Olmo 3
        "phi3": CutRule(),  # also Phi-4
        "qwen2": CutRule(),
        "qwen2moe": CutRule(),
        "qwen3": CutRule(),
        "qwen3moe": CutRule(),
        "seed_oss": CutRule(),
        "smollm3": CutRule(multiple=4),  # each fourth layer has no rope
    }
)


ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {"gemma3_text": "gemma3", "gpt_oss": "gpt-oss", "mistral": "llama", "qwen3_moe": "qwen3moe"}
)
"""What GGUF files call the families that have another name as a `model_type`."""


def stage_starts(family: str, n_layers: int) -> Sequence[int]:
    """Return the layers at which a stage may begin, in order. If it is only 0, the model runs whole.

    A part that begins with a layer without a window may be that layer alone, so none begins there.
    """
    rule = RULES.get(ARCHITECTURES.get(family, family))
    if rule is None or 0 < rule.special_size <= n_layers:  # of more layers, a part could have just so many
        return (0,)
    period = rule.window_period or n_layers + 1
    return [layer for layer in range(0, n_layers, rule.multiple) if layer % period < period - 1]


def cut_rule(architecture: str, shard: Shard) -> CutRule:
    """Return the rule for a part of a model. Raises NotInParts if the model cannot be cut like that."""
    rule = RULES.get(architecture)
    if rule is None:
        raise NotInParts(
            f"llama.cpp's {architecture!r} models are not known to give the same numbers in parts;"
            " run this one whole on one node that has the memory for it"
        )
    if rule.special_size in (shard.n_layers, len(shard.layers)):
        raise NotInParts(
            f"llama.cpp computes {architecture!r} models of {rule.special_size} layers in another way than their parts;"
            " run this one whole on one node that has the memory for it"
        )
    for layer in (shard.start_layer, shard.end_layer):
        if layer % rule.multiple and layer != shard.n_layers:
            raise NotInParts(
                f"{architecture!r} models can be cut at every {rule.multiple}th layer only, not at {layer};"
                " run this one whole on one node, or on nodes of another memory"
            )
    return rule


def windowed_layers(rule: CutRule, said: object, shard: Shard) -> list[bool] | None:
    """Return for each layer of a part whether it attends within a window; None if the architecture has no windows.

    `said` is what the file says of it: a list, another period, or nothing. Raises NotInParts if no layer of the part
    has a window, because llama.cpp ends the process for a file that names a window and no layer that has it.
    """
    if not rule.window_period:
        return None
    if isinstance(said, list):
        windowed = [bool(said[layer]) for layer in shard.layers]
    else:
        period = said if isinstance(said, int) else rule.window_period
        windowed = [layer % period < period - 1 for layer in shard.layers]
    if not any(windowed):
        raise NotInParts(f"{shard} has no layer with a window, which llama.cpp needs here; cut the model elsewhere")
    return windowed
