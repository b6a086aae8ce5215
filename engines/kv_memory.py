"""Memory for keys and values that costs nothing until it is written. Knows no slots and no layout."""

from __future__ import annotations

import mmap
import sys
from math import prod

import numpy as np

from engines.engine import FloatArray
from engines.errors import EngineError

_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
"""Python has the name only from 3.13 on."""


class KVMemory:
    """A float32 array of zeros in its own address space. Each page becomes memory when it is first written.

    So a slot can have room for its whole context. The address space is freed with the last view of `array`.
    """

    def __init__(self, *shape: int) -> None:
        """Reserve the address space. Raises EngineError if the system grants no more than it has memory."""
        nbytes = prod(shape) * np.dtype(np.float32).itemsize
        try:
            self._pages = _reserve(nbytes)
        except OSError as error:
            raise EngineError(
                f"the system grants no address space of {nbytes >> 20} MiB for keys and values ({error.strerror});"
                " let it overcommit memory, or choose a model with a shorter context"
            ) from error
        self.array: FloatArray = np.frombuffer(self._pages, np.float32, prod(shape)).reshape(shape)

    def discard(self, part: FloatArray) -> None:
        """Return a contiguous part of the array to the system: the pages that lie wholly inside it become zeros.

        A system without `madvise` keeps them until the whole array is freed.
        """
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = part.ctypes.data - self.array.ctypes.data
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (start + part.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > first:
            self._pages.madvise(mmap.MADV_DONTNEED, first, end - first)


def _reserve(nbytes: int) -> mmap.mmap:
    """Map anonymous pages. Raises OSError."""
    if sys.platform == "win32":
        return mmap.mmap(-1, nbytes)
    # Python maps shared memory by default, which would keep discarded pages.
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    # One written row must not take a whole huge page of 2 MB.
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return pages
