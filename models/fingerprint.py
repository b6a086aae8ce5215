"""What tells two models of one name apart, without reading them whole: a hash over sizes and parts of their files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from models.quantizations import SPLIT, part_names

_PIECE_BYTES = 64 << 10
_FOLDER_FILES = ("*.safetensors", "config.json", "tokenizer.json")
_Seen = tuple[tuple[str, int, int], ...]


class Fingerprints:
    """Fingerprints by path, kept until a file's size or modification time changes."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[_Seen, str]] = {}

    def get(self, path: Path) -> str:
        """Return the fingerprint of a model folder or .gguf file; "" if it cannot be read."""
        try:
            files = model_files(path)
            seen = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
            if self._known.get(path, (None, ""))[0] != seen:
                self._known[path] = seen, _hash_of(files)
        except OSError:
            return ""
        return self._known[path][1]


def model_files(path: Path) -> list[Path]:
    """List the files of the model at a path: of a folder its weights and settings, of a split model all its parts."""
    if path.is_dir():
        return sorted(file for pattern in _FOLDER_FILES for file in path.glob(pattern))
    match = SPLIT.fullmatch(path.name)
    return [path.with_name(name) for name in part_names(path.name, int(match["count"]) if match else 1)]


def _hash_of(files: list[Path]) -> str:
    """Hash the names' order, the sizes, and the first and last bytes: of fine-tunes only the latter may differ."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            digest.update(f"{path.suffix.lower()} {size}\n".encode())
            for offset in (0, max(size - _PIECE_BYTES, 0)):
                file.seek(offset)
                digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()[:32]
