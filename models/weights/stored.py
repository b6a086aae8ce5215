"""Where a tensor lies in a file, and where some of its rows do. Knows no format."""

from __future__ import annotations

from typing import TypeVar

import msgspec


class StoredTensor(msgspec.Struct, frozen=True, kw_only=True):
    """Where one tensor lies, in bytes from the start of its file. `shape` is in numpy's order, rows first."""

    shape: tuple[int, ...]
    offset: int
    nbytes: int


StoredT = TypeVar("StoredT", bound=StoredTensor)


def rows_of(stored: StoredT, start: int, rows: int) -> StoredT:
    """Locate some rows of a tensor. In all formats rows follow one another, and quantized blocks do not span them."""
    row_bytes = stored.nbytes // stored.shape[0]
    shape, offset = (rows, *stored.shape[1:]), stored.offset + start * row_bytes
    return msgspec.structs.replace(stored, shape=shape, offset=offset, nbytes=rows * row_bytes)
