"""Writes a GGUF file from values and tensors that are bytes already. Knows no model.

Tensor data is copied in pieces, so that a file may be larger than memory. A tensor of zeros is a hole in the file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGUF_MAGIC, GGMLQuantizationType, GGUFValueType

from common.files import replacing

_VERSION = 3
_PIECE = 4 << 20


@dataclass(frozen=True)
class WrittenTensor:
    """A tensor to write: its data is `content`, or lies at `offset` of the file `source`; zeros if both are None.

    Content that is a function is made when its turn comes, so that not all of it is in memory at once.
    """

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    source: Path | None = None
    offset: int = 0
    content: bytes | Callable[[], bytes] | None = None

    @property
    def nbytes(self) -> int:
        """The size of its data."""
        block, block_bytes = GGML_QUANT_SIZES[self.kind]
        return int(prod(self.shape) // block * block_bytes)


def write_gguf(
    path: Path,
    entries: Mapping[str, bytes],
    tensors: Iterable[WrittenTensor],
    alignment: int = 32,
) -> None:
    """Write a file in one step. `entries` are encoded values, with their types. Raises OSError."""
    tensors = list(tensors)
    with replacing(path) as file:
        file.write(_header(entries, tensors, alignment))
        for tensor in tensors:
            file.seek(_aligned(file.tell(), alignment))
            for piece in _pieces(tensor):
                file.write(piece)
            if tensor.content is None and tensor.source is None:
                file.seek(tensor.nbytes, os.SEEK_CUR)
        file.truncate(_aligned(file.tell(), alignment))


def encoded(value: str | int | float) -> bytes:
    """Encode a metadata value with its type: a text, a 32-bit number without sign, or a float32."""
    if isinstance(value, str):
        return struct.pack("<I", GGUFValueType.STRING) + _text(value)
    if isinstance(value, int):
        return struct.pack("<II", GGUFValueType.UINT32, value)
    return struct.pack("<If", GGUFValueType.FLOAT32, value)


def encoded_flags(flags: list[bool]) -> bytes:
    """Encode an array of truth values with its type."""
    return struct.pack("<IIQ", GGUFValueType.ARRAY, GGUFValueType.BOOL, len(flags)) + bytes(flags)


def picked(array: bytes, items: Sequence[int]) -> bytes:
    """Cut an encoded array of numbers or truth values to some of its items, in this order."""
    (count,) = struct.unpack_from("<Q", array, 8)
    size = (len(array) - 16) // count
    kept = (array[16 + item * size : 16 + (item + 1) * size] for item in items)
    return array[:8] + struct.pack("<Q", len(items)) + b"".join(kept)


def _header(entries: Mapping[str, bytes], tensors: list[WrittenTensor], alignment: int) -> bytes:
    header = struct.pack("<IIQQ", GGUF_MAGIC, _VERSION, len(tensors), len(entries))
    header += b"".join(_text(key) + value for key, value in entries.items())
    offset = 0
    for tensor in tensors:
        dimensions = tensor.shape[::-1]
        header += _text(tensor.name) + struct.pack(
            f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, tensor.kind, offset
        )
        offset = _aligned(offset + tensor.nbytes, alignment)
    return header.ljust(_aligned(len(header), alignment), b"\0")


def _pieces(tensor: WrittenTensor) -> Iterator[bytes]:
    """Return the tensor's data in pieces. Raises OSError if its source ends too early."""
    if tensor.content is not None:
        yield tensor.content if isinstance(tensor.content, bytes) else tensor.content()
    elif tensor.source is not None:
        with tensor.source.open("rb") as source:
            source.seek(tensor.offset)
            left = tensor.nbytes
            while left:
                piece = source.read(min(left, _PIECE))
                if not piece:
                    raise OSError(f"{tensor.source} was cut short while it was read")
                left -= len(piece)
                yield piece


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
