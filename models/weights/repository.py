"""A folder with the files of a Hugging Face repository, for an engine that reads them by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Repository:
    """A folder whose headers are checked, and the names of all tensors of its model, of which files may be absent."""

    folder: Path
    names: frozenset[str]
