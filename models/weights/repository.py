"""A folder with the files of a Hugging Face repository, for an engine that reads them by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.folder_model import FolderModel


@dataclass(frozen=True, slots=True)
class Repository:
    """A folder whose headers are checked, the stored names of all tensors of its model, and what is known of it.

    Files may be absent.
    """

    folder: Path
    names: frozenset[str]
    model: FolderModel
