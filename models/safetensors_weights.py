"""A folder of safetensors files, read tensor by tensor. Checks every header before it believes it.

The files are read, not mapped: mapped pages count as resident memory, and a file cut short under a mapping
kills the process. bfloat16, which numpy and so the `safetensors` package's numpy side lack, is widened by a
shift of its bits.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np

from models.checkpoint import check_shapes
from models.config import config_from_folder, read_json
from models.errors import WeightsError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MAX_HEADER_BYTES = 16 << 20
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_FILE_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,200}\.safetensors")


class StoredTensor(msgspec.Struct, frozen=True):
    """Where one tensor lies, in bytes from the start of `path`; `dtype` in the format's own letters."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class SafetensorsWeights:
    """config.json with one or several *.safetensors files; only tensors whose file is present can be read."""

    def __init__(self, folder: Path) -> None:
        self.config = config_from_folder(folder)
        self._folder = folder
        self._tensors: dict[str, StoredTensor] = {}
        for path in _present_files(folder):
            self._add(path, read_header(path))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored on disk."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def names(self) -> frozenset[str]:
        """The names of the tensors in the files that are present."""
        return frozenset(self._tensors)

    def tensor(self, name: str) -> np.ndarray:
        """A fresh float32 array of the checkpoint's shape. WeightsError if it is not in the files present."""
        stored = self._tensors.get(name)
        if stored is None:
            raise WeightsError(f"{self._folder} holds no tensor {name!r}; fetch the model again")
        return _float32(stored).reshape(stored.shape)

    def blocks(self, name: str) -> None:
        """Nothing: these files hold no quantised blocks."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tensors.clear()

    def _add(self, path: Path, tensors: dict[str, StoredTensor]) -> None:
        check_shapes(self.config, {name: stored.shape for name, stored in tensors.items()}, path)
        for name, stored in tensors.items():
            if name in self._tensors:
                raise _damaged(stored.path, f"holds {name!r}, which another file of the model holds too")
            self._tensors[name] = stored


def index_files(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, from the folder's index, with every file name checked. WeightsError."""
    path = folder / INDEX
    mapping = read_json(path).get("weight_map")
    if not isinstance(mapping, dict):
        raise WeightsError(f"{path} has no weight_map; delete it and fetch the model again")
    for file in mapping.values():
        if not isinstance(file, str) or not _FILE_NAME.fullmatch(file):
            raise WeightsError(f"{path} names the file {file!r}, which exobus will not open; pick another model")
    return mapping


def _present_files(folder: Path) -> list[Path]:
    """The weights files that are here, in name order; a folder without an index holds a single file."""
    files = set(index_files(folder).values()) if (folder / INDEX).is_file() else {SINGLE}
    present = [folder / file for file in sorted(files) if (folder / file).is_file()]
    if not present:
        raise WeightsError(f"{folder} holds no safetensors file; fetch the model again")
    return present


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, after checking that the header tells the truth about it. WeightsError."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise _damaged(path, f"claims a header of {length} bytes in a file of {size}")
            text = file.read(length)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); fetch the model again") from error
    entries = _parse_header(path, text)
    begin = 8 + length
    tensors = {name: _stored(path, name, entry, begin, size) for name, entry in entries.items()}
    _check_overlaps(path, tensors)
    return tensors


def _parse_header(path: Path, text: bytes) -> dict[str, _Entry]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise _damaged(path, "names a tensor twice")
        return dict(pairs)

    try:
        header = json.loads(text, object_pairs_hook=unique)
        if isinstance(header, dict):
            header.pop("__metadata__", None)
        return msgspec.convert(header, dict[str, _Entry])
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "has a header that is not of the safetensors format") from error


def _stored(path: Path, name: str, entry: _Entry, data_start: int, file_size: int) -> StoredTensor:
    begin, end = entry.data_offsets
    if not 0 <= begin <= end <= file_size - data_start:
        raise _damaged(path, f"places {name!r} outside the file")
    if entry.dtype not in _ITEM_BYTES:
        raise WeightsError(
            f"{path} stores {name!r} as {entry.dtype}, but exobus reads F32, F16 and BF16; pick another model"
        )
    if min(entry.shape, default=1) < 0 or math.prod(entry.shape) * _ITEM_BYTES[entry.dtype] != end - begin:
        raise _damaged(path, f"gives {name!r} a shape that does not fit its bytes")
    return StoredTensor(path, entry.dtype, entry.shape, data_start + begin, end - begin)


def _check_overlaps(path: Path, tensors: dict[str, StoredTensor]) -> None:
    end = 0
    for stored in sorted(tensors.values(), key=lambda stored: (stored.offset, stored.nbytes)):
        if stored.offset < end:
            raise _damaged(path, "lays tensors over one another")
        end = stored.offset + stored.nbytes


def _float32(stored: StoredTensor) -> np.ndarray:
    if stored.dtype == "BF16":
        widened = _read(stored, "<u2").astype(np.uint32)
        widened <<= 16
        return widened.view(np.float32)
    return _read(stored, "<f4" if stored.dtype == "F32" else "<f2").astype(np.float32, copy=False)


def _read(stored: StoredTensor, dtype: str) -> np.ndarray:
    count = stored.nbytes // np.dtype(dtype).itemsize
    try:
        values = np.fromfile(stored.path, dtype, count, offset=stored.offset)
    except OSError as error:
        raise WeightsError(f"{stored.path} cannot be read ({error.strerror}); fetch the model again") from error
    if values.size != count:
        raise _damaged(stored.path, "was cut short while it was read")
    return values


def _damaged(path: Path, what: str) -> WeightsError:
    return WeightsError(f"{path} {what}: it is damaged, delete it and fetch the model again")
