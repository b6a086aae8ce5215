"""The files of a model, for an engine that reads them by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.stored_model import StoredModel


@dataclass(frozen=True, slots=True)
class Repository:
    """A folder of a Hugging Face repository, or a GGUF file that exobus does not describe.

    Its headers are checked. `names` are the stored names of all tensors of the model; files of a folder may be absent.
    """

    path: Path
    names: frozenset[str]
    model: StoredModel
