"""Files that are either whole or absent: written beside their name, flushed to disk, then renamed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_PIECE_BYTES = 1 << 20


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file open for writing that gets its name only if the block ends well; else nothing is left."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """All of `content` under `path`, or nothing."""
    with written_whole(path) as file:
        file.write(content)


def pieces(file: IO[bytes]) -> Iterator[bytes]:
    """The rest of a file in pieces of a mebibyte."""
    while piece := file.read(_PIECE_BYTES):
        yield piece


def sha256_of(path: Path) -> str:
    """The sha256 of a whole file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
