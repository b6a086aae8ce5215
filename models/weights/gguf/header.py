"""The header of a GGUF file: its metadata and where its tensors lie. Every length is checked before use.

The format is that of the GGUF specification, versions 2 and 3, little-endian. The `gguf` package provides the
constants. Its reader is not used: it makes an array object for every vocabulary entry (1.7 s and 167 MB for 49,152
tokens) and checks no length.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any

import msgspec
from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGUF_MAGIC, GGMLQuantizationType, GGUFValueType, Keys

from models.errors import WeightsError
from models.weights.stored import StoredTensor

_MAX_HEADER_BYTES = 256 << 20
_MAX_STRING_BYTES = 4 << 20
_MAX_ENTRIES = 1 << 16
_MAX_ARRAY = 1 << 22
_MAX_DIMENSIONS = 4
_MAX_ALIGNMENT = 1 << 16
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}

_LENGTH = struct.Struct("<Q")

_TensorInfo = tuple[str, tuple[int, ...], int, int]
"""Name, shape, number of the quantization type, and offset within the data."""


class GgufTensor(StoredTensor, frozen=True, kw_only=True):
    """Where one tensor lies, and its quantization. `part` is the number of its file in a split model, from 0."""

    kind: GGMLQuantizationType
    part: int = 0


class GgufHeader(msgspec.Struct, frozen=True):
    """Everything in a GGUF file before the data of its tensors: metadata by key, tensors by name.

    `places` are where each metadata value lies in the file, its type included: first and end byte.
    """

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    places: dict[str, tuple[int, int]] = {}


class HeaderCutShort(WeightsError):
    """A file that ends inside its header."""


def read_header(path: Path, skipped: str = "", filled: int | None = None) -> GgufHeader:
    """Read and check the header of `path`. Raises WeightsError if it is not GGUF, damaged or cut short.

    Lists with keys that begin with `skipped`, if that is given, are passed over: they have a place, and None as value.
    Of a file that is being fetched only the first `filled` bytes are there; HeaderCutShort says that they are too few.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 24:
                raise _damaged(path, f"is only {size} bytes long")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Cursor(path, data, skipped, size if filled is None else filled).header()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); fetch the model again") from error


def is_gguf(path: Path) -> bool:
    """Return whether a file begins like GGUF. Raises WeightsError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(4) == struct.pack("<I", GGUF_MAGIC)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); give the path of a model") from error


class _Cursor:
    """Reads a header front to back. Raises WeightsError before it would pass the file's end or a limit above."""

    def __init__(self, path: Path, data: mmap.mmap, skipped: str, filled: int) -> None:
        self._path = path
        self._skipped = skipped
        self._data = data
        self._position = 0
        self._places: dict[str, tuple[int, int]] = {}
        self._end = min(filled, len(data), _MAX_HEADER_BYTES)

    def header(self) -> GgufHeader:
        magic, version = self._unpack("II")
        if magic != GGUF_MAGIC:
            raise _damaged(self._path, "does not begin like a GGUF file")
        if version not in (2, 3):
            raise WeightsError(f"{self._path} is GGUF of version {version}, and exobus reads 2 and 3; convert it again")
        n_tensors, n_entries = self._count(_MAX_ENTRIES), self._count(_MAX_ENTRIES)
        metadata = self._metadata(n_entries)
        infos = [self._tensor_info() for _ in range(n_tensors)]
        alignment = metadata.get(Keys.General.ALIGNMENT, GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise _damaged(self._path, "gives an alignment that is not a power of two")
        tensors = self._located(infos, -(-self._position // alignment) * alignment)
        return GgufHeader(metadata, tensors, self._places)

    def _metadata(self, n_entries: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(n_entries):
            key = self._string()
            if key in metadata:
                raise _damaged(self._path, f"gives {key!r} twice")
            begin, kind = self._position, self._kind()
            skips = self._skipped and key.startswith(self._skipped) and kind == GGUFValueType.ARRAY
            metadata[key] = None if skips else self._value(kind)
            if skips:
                self._skip_list()
            self._places[key] = begin, self._position
        return metadata

    def _tensor_info(self) -> _TensorInfo:
        """Read the description of one tensor."""
        name = self._string()
        (n_dimensions,) = self._unpack("I")
        if not 0 < n_dimensions <= _MAX_DIMENSIONS:
            raise _damaged(self._path, f"gives {name!r} {n_dimensions} dimensions")
        *dimensions, kind, offset = self._unpack(f"{n_dimensions}QIQ")
        return name, tuple(reversed(dimensions)), kind, offset

    def _located(self, infos: list[_TensorInfo], data_start: int) -> dict[str, GgufTensor]:
        """Find each tensor's bytes in the file, and check that all of them are there."""
        tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in infos:
            if name in tensors:
                raise _damaged(self._path, f"holds {name!r} twice")
            quantization = self._quantization(name, kind)
            block, block_bytes = GGML_QUANT_SIZES[quantization]
            nbytes = math.prod(shape) // block * block_bytes
            if shape[-1] % block or data_start + offset + nbytes > len(self._data):
                raise _damaged(self._path, f"was cut short: {name!r} does not lie wholly inside it")
            tensors[name] = GgufTensor(kind=quantization, shape=shape, offset=data_start + offset, nbytes=nbytes)
        return tensors

    def _quantization(self, name: str, kind: int) -> GGMLQuantizationType:
        try:
            return GGMLQuantizationType(kind)
        except ValueError as error:
            raise WeightsError(
                f"{self._path} stores {name!r} in the unknown type {kind}; update exobus or pick another model"
            ) from error

    def _value(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind != GGUFValueType.ARRAY:
            return self._unpack(_SCALARS[kind])[0]
        item_kind, count = self._list_start()
        if item_kind == GGUFValueType.STRING:
            return [self._string() for _ in range(count)]
        return list(self._unpack(f"{count}{_SCALARS[item_kind]}"))

    def _list_start(self) -> tuple[GGUFValueType, int]:
        """Read the kind of a list's items, and how many there are."""
        item_kind, count = self._kind(), self._count(_MAX_ARRAY)
        if item_kind == GGUFValueType.ARRAY:
            raise _damaged(self._path, "nests arrays in its metadata")
        return item_kind, count

    def _skip_list(self) -> None:
        """Pass over a list, also one of a hundred thousand strings, without an object for each."""
        item_kind, count = self._list_start()
        if item_kind in _SCALARS:
            self._take(count * struct.calcsize("<" + _SCALARS[item_kind]))
            return
        data, last, position = self._data, self._end - _LENGTH.size, self._position
        for _ in range(count):
            if position > last:
                raise _damaged(self._path, "was cut short: it ends inside its header")
            position += _LENGTH.size + _LENGTH.unpack_from(data, position)[0]
        self._position = position
        self._take(0)

    def _kind(self) -> GGUFValueType:
        (kind,) = self._unpack("I")
        try:
            return GGUFValueType(kind)
        except ValueError as error:
            raise _damaged(self._path, f"has metadata of the unknown type {kind}") from error

    def _count(self, limit: int) -> int:
        (count,) = self._unpack("Q")
        if count > limit:
            raise _damaged(self._path, f"claims {count} entries, and at most {limit} make sense")
        return int(count)

    def _string(self) -> str:
        length = self._count(_MAX_STRING_BYTES)
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise _damaged(self._path, "holds text that is not UTF-8") from error

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        layout = "<" + layout
        return struct.unpack(layout, self._take(struct.calcsize(layout)))

    def _take(self, count: int) -> bytes:
        begin, self._position = self._position, self._position + count
        if self._position > self._end:
            raise HeaderCutShort(str(_damaged(self._path, "was cut short: it ends inside its header")))
        return self._data[begin : self._position]


def _damaged(path: Path, what: str) -> WeightsError:
    return WeightsError(f"{path} {what}: it is damaged, delete it and fetch the model again")
