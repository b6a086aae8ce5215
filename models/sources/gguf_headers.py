"""The headers of GGUF files of the hub: a few MB of each, so that a model is known before it is fetched.

A header is stored as a sparse file of the whole file's size: whatever reads headers reads it, and it takes the disk
only what has come.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from models.errors import NotOnHub, TokenizerError, WeightsError
from models.sources.hub_listing import Listing, read_range
from models.weights.gguf.header import GgufHeader, HeaderCutShort, read_header

HEADERS = ".headers"  # in the model's folder, with a folder for each commit
FIRST_BYTES = 4 << 20  # most vocabularies of 32 bits and less than this end in it
MOST_BYTES = 256 << 20
_READ_WITH_HEADER = "rope_freqs.weight"  # a small tensor that says how the rope is scaled
_MAX_TENSOR_BYTES = 1 << 20


def fetch_headers(listing: Listing, names: Sequence[str], folder: Path, check_cancelled: Callable[[], None]) -> Path:
    """Bring the headers of a model's files into `folder`, and return the path of the first one.

    Raises NotOnHub or WeightsError, and what `check_cancelled` raises, which is called before each request.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / PurePosixPath(name).name for name in names]
    for name, path in zip(names, paths, strict=True):
        if not path.is_file():
            _fetch_header(listing, name, path, check_cancelled)
    return paths[0]


@contextmanager
def named_by_repository(folder: Path, repo: str) -> Iterator[None]:
    """Name a file by its repository in errors: the header that was read of it lies in a folder no user knows."""
    try:
        yield
    except (WeightsError, TokenizerError) as error:
        known = rf"{re.escape(str(folder))}/([^/]+?\.(?:gguf|safetensors))(?:\.\d+\.part)?"
        sentence = re.sub(known, rf"\1 of {repo}", str(error), flags=re.IGNORECASE)
        raise type(error)(sentence.replace("delete it and fetch the model again", "pick another model")) from error


def _fetch_header(listing: Listing, name: str, path: Path, check_cancelled: Callable[[], None]) -> None:
    if name not in listing.files:
        raise NotOnHub(f"the repository {listing.repo} has no {name}; pick another model")
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.truncate(listing.files[name].size)
        header, wanted = None, FIRST_BYTES
        while header is None:
            check_cancelled()
            header = _extended(listing, name, part, wanted)
            wanted *= 2
        stored = header.tensors.get(_READ_WITH_HEADER)
        if stored is not None and stored.nbytes <= _MAX_TENSOR_BYTES:
            check_cancelled()
            _write_at(part, stored.offset, read_range(listing.url(name), stored.offset, stored.nbytes))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _extended(listing: Listing, name: str, part: Path, wanted: int) -> GgufHeader | None:
    """Fetch the second half of the first `wanted` bytes, or all at first. Returns the header once it is complete."""
    first = 0 if wanted == FIRST_BYTES else wanted // 2
    _write_at(part, first, read_range(listing.url(name), first, wanted - first))
    try:
        return read_header(part, filled=wanted)
    except HeaderCutShort:
        if wanted >= min(listing.files[name].size, MOST_BYTES):
            raise
        return None


def _write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
