"""What a GGUF file says of a model that exobus does not describe, and that llama.cpp alone may run. Reads no tensor."""

from __future__ import annotations

from pathlib import Path

from gguf import MODEL_ARCH_NAMES, Keys

from models.errors import WeightsError
from models.settings import Settings
from models.sizes import ModelSizes
from models.stored_model import StoredModel
from models.weights.gguf.config import check_whole_model
from models.weights.gguf.header import GgufHeader
from models.weights.gguf.sizes import gguf_sizes

HEAD = "output.weight"


def undescribed_model(header: GgufHeader, path: Path) -> StoredModel:
    """Return the sizes of a model. Raises WeightsError for what llama.cpp does not run as well, and for no model."""
    metadata = header.metadata
    check_whole_model(metadata, path)
    family = str(metadata.get(Keys.General.ARCHITECTURE))
    if family not in MODEL_ARCH_NAMES.values():
        sentence = f"is of the architecture {family[:64]!r}, which neither exobus nor llama.cpp knows"
        raise WeightsError(f"{path} {sentence}; update exobus, or pick another model")
    found = gguf_sizes(header, path)
    if metadata.get(Keys.Attention.CAUSAL.format(arch=family)) is False:
        raise WeightsError(f"{path} is of the family {family!r} and generates no text; pick another model")
    n_kv_heads = max(1, *found.kv_heads)
    sizes = ModelSizes(
        model_type=family,
        n_layers=found.n_layers,
        hidden_size=found.hidden_size,
        n_heads=max(1, *found.heads),
        n_kv_heads=n_kv_heads,
        head_dim=max(1, -(-max(found.kv_widths) // (2 * n_kv_heads))),
        vocab_size=found.vocab_size,
        context_length=found.context_length,
        tied_embedding=HEAD not in header.tensors,
        dtype="float32",
    )
    return StoredModel(Settings({}, str(path)), sizes, f"is of the family {family!r}", None, "llamacpp")
