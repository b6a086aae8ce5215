"""The model files that all nodes of a machine share: a folder and a record of complete files for each model.

Knows no source and no progress: `models.sources` decides what to fetch, and records here what it has checked.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec
from platformdirs import user_cache_path

from common.files import write_atomic
from models.card import FolderSource, ModelCard
from models.sizes import ModelSizes

_MODEL_FILES = (".safetensors", ".json", ".jinja")
RECORD = ".exobus.json"
_CARDS = ".cards"


class CachedFile(msgspec.Struct, frozen=True):
    """A file that was complete when it was recorded: size in bytes, modification time, sha256 in hexadecimal."""

    size: int
    mtime_ns: int
    sha256: str


class Record(msgspec.Struct):
    """What a model's folder holds.

    `revision` is the commit, or the hash of the wheel, that the files are from. Of a repository, `source` is its name
    and revision in the card, and `settings` are the names of all its files but the weights. `sizes` are those of a
    .gguf file, which take long to read from it.
    """

    revision: str = ""
    files: dict[str, CachedFile] = {}
    source: str = ""
    settings: list[str] = []
    sizes: ModelSizes | None = None


def default_cache_root() -> Path:
    """Return `EXOBUS_CACHE`, or the platform's cache folder of this user."""
    named = os.environ.get("EXOBUS_CACHE")
    return Path(named).expanduser() if named else user_cache_path("exobus") / "models"


_Seen = tuple[str, int, int]
"""A file's name, size in bytes and modification time."""


class ModelCache:
    """Models under `root`, each in a folder named after its id."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seen: dict[Path, frozenset[_Seen]] = {}

    @property
    def cards_folder(self) -> Path:
        """The folder of the cards that were made from models of the hub."""
        return self.root / _CARDS

    def folder(self, card: ModelCard) -> Path:
        """Return the folder of the card's config and tokenizer; the user's own model folder stays where it is."""
        if isinstance(card.source, FolderSource) and card.source.path.is_dir():
            return card.source.path
        return self.root / card.id

    def bytes_here(self, card: ModelCard) -> int:
        """Count the bytes of the model's own files in the cache that are recorded as complete."""
        folder = self.root / card.id
        files = read_record(folder).files.items()
        return sum(file.size for name, file in files if (folder / Path(name).name).is_file())

    def has(self, card: ModelCard) -> bool:
        """Return whether a model needs no download: it is the user's own, or its files are here."""
        return isinstance(card.source, FolderSource) or self.bytes_here(card) >= max(card.size_bytes, 1)

    def unchanged(self, path: Path) -> bool:
        """Return whether the user's own model at `path` is still what it was at the first call for it."""
        seen = frozenset(_seen_at(path))
        return self._seen.setdefault(path, seen) == seen

    def lock_file(self, card: ModelCard) -> Path:
        """Return the file to lock while the card's folder changes. It lies beside the folder."""
        return self.root / f".{card.id}.lock"


def _seen_at(path: Path) -> Iterator[_Seen]:
    """List a file, or the files of a folder that are parts of a model."""
    for file in path.iterdir() if path.is_dir() else [path]:
        if file.is_file() and (file == path or file.suffix in _MODEL_FILES):
            status = file.stat()
            yield file.name, status.st_size, status.st_mtime_ns


def clear_folder(folder: Path, kept: Collection[str] = ()) -> None:
    """Remove all that another source or commit left in `folder`, but the record and the entries named in `kept`."""
    for path in folder.iterdir():
        if path.name in kept or path.name == RECORD:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def read_record(folder: Path) -> Record:
    """Read the record of `folder`. A missing or damaged one is empty, so that everything is fetched again."""
    try:
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return Record()


def write_record(folder: Path, record: Record) -> None:
    """Replace the record of `folder`. Raises OSError."""
    write_atomic(folder / RECORD, msgspec.json.encode(record))


def sha256_of(path: Path) -> str:
    """Hash a whole file. Returns the sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked_file(path: Path, sha256: str) -> CachedFile:
    """Make the record of a file that was just written and has this hash."""
    status = path.stat()
    return CachedFile(status.st_size, status.st_mtime_ns, sha256)


def is_complete(path: Path, recorded: CachedFile | None) -> bool:
    """Compare a file with its record by size and time, and by its hash if only the time differs."""
    if recorded is None or not path.is_file():
        return False
    status = path.stat()
    if status.st_size != recorded.size:
        return False
    return status.st_mtime_ns == recorded.mtime_ns or sha256_of(path) == recorded.sha256
