"""What a family of models is to exobus: how its settings become a description, and how its files store tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gguf import MODEL_ARCH

from models.architecture import Architecture
from models.settings import Settings


@dataclass(frozen=True)
class Family:
    """A family: its `model_type`s, the first of which is its name, and its architecture in GGUF files.

    `fused` maps modules of a layer that files store as one to their parts; the rows of these follow one another. With
    `pairwise_rope` the rows of q and k in GGUF files are in the order of llama.cpp's rope of adjacent dimensions
    (`LLAMA_ROPE_TYPE_NORM` there). With `single_experts` safetensors files have tensors for each expert. With
    `gguf_only` exobus reads no safetensors files of the family.
    """

    model_types: tuple[str, ...]
    gguf: MODEL_ARCH
    describe: Callable[[Settings], Architecture]
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pairwise_rope: bool = False
    single_experts: bool = False
    gguf_only: bool = False
