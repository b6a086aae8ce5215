"""What a repository holds that has no model in a form that exobus reads. Pure: names of files in, a sentence out."""

from __future__ import annotations

from collections.abc import Collection

from models.quantizations import SPLIT

_PYTORCH = (".bin", ".pt", ".pth", ".ckpt")


def without_model(names: Collection[str]) -> str:
    """Return what is wrong with a repository of these files, and the next step, as what follows its name."""
    if "adapter_config.json" in names:
        return "is an adapter (LoRA), which exobus does not apply; pick the model with the adapter merged into it"
    if any(SPLIT.fullmatch(name) for name in names):
        return "lacks a part of each of its split GGUF models; pick another"
    if any(name.lower().endswith(".gguf") for name in names):
        return "has only GGUF files that go with a model (mmproj, imatrix); pick the repository of the model itself"
    if any(name.endswith(_PYTORCH) for name in names):
        return "has its weights as PyTorch files only; pick a repository with safetensors or GGUF files"
    return "has neither safetensors files with a config.json nor GGUF files; pick another"
