"""A GGUF file of rounded matrices in the model cache, under canonical names. Knows no model and rounds nothing."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from cluster.shard import Shard
from models.cache import default_cache_root
from models.errors import WeightsError
from models.fingerprint import model_files
from models.weights.checkpoint import Shape
from models.weights.gguf.file import WrittenTensor, write_gguf
from models.weights.gguf.header import GgufTensor, read_header

logger = logging.getLogger(__name__)

FOLDER = ".quantized"
KEPT = 6
"""How many files stay in the cache, of all models; those that were not used for longest go first."""

PART_AGE_S = 3600.0  # an unfinished file that nobody wrote to for so long belongs to a process that was killed

_BUILDER = 1  # part of the name: another one makes other files


@dataclass(frozen=True, slots=True)
class RoundedFile:
    """Where the matrices of a shard of the model at `source` are kept, rounded to `bits`."""

    source: Path
    shard: Shard
    bits: int
    root: Path | None = None

    def open(
        self,
        kinds: Mapping[str, GGMLQuantizationType],
        shapes: Mapping[str, Shape],
        make: Callable[[str], np.ndarray],
    ) -> tuple[Path, dict[str, GgufTensor]] | None:
        """Return the file and its tensors; it is written, with the bytes that `make` returns, unless it is there.

        Returns None, and logs why, if it cannot be written: the model can be used without it.
        """
        path = self.path()
        try:
            if not _is_usable(path, kinds):
                path.parent.mkdir(parents=True, exist_ok=True)
                _remove_parts(path.parent)
                write_gguf(path, {}, [_written(name, kinds[name], shapes[name], make) for name in kinds])
            path.touch()
            _remove_oldest(path.parent)
            return path, read_header(path).tensors
        except OSError as error:
            logger.warning(
                "%s cannot be written (%s), so the matrices are rounded again at the next load; free some space",
                path,
                error.strerror or error,
            )
            return None

    def path(self) -> Path:
        """Return the path of the file: its name follows from the source's files as they are now."""
        digest = hashlib.sha256(f"{self.source.resolve()}\n{self.bits}\n{_BUILDER}".encode())
        for file in model_files(self.source):
            status = file.stat()
            digest.update(f"\n{file.name}\n{status.st_size}\n{status.st_mtime_ns}".encode())
        folder = (self.root or default_cache_root()) / FOLDER
        return folder / f"{digest.hexdigest()[:24]}-{self.shard.start_layer}-{self.shard.end_layer}.gguf"


def _written(name: str, kind: GGMLQuantizationType, shape: Shape, make: Callable[[str], np.ndarray]) -> WrittenTensor:
    return WrittenTensor(name, kind, shape, content=lambda: make(name).tobytes())


def _is_usable(path: Path, kinds: Mapping[str, GGMLQuantizationType]) -> bool:
    """Return whether the file is there and holds the tensors; a damaged one is written again."""
    if not path.is_file():
        return False
    try:
        found = read_header(path).tensors
    except WeightsError:
        return False
    return {name: tensor.kind for name, tensor in found.items()} == kinds


def _remove_parts(folder: Path) -> None:
    """Remove what processes that were killed left unfinished."""
    for part in folder.glob("*.part"):
        if time.time() - part.stat().st_mtime > PART_AGE_S:
            part.unlink(missing_ok=True)


def _remove_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.gguf"), key=lambda file: file.stat().st_mtime_ns)
    for file in files[:-KEPT]:
        file.unlink(missing_ok=True)
