"""Memory that a process has freed, given back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def trim_heap() -> None:
    """Give back what was freed, where the C library is glibc: after a load it may keep a hundred MB for reuse."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
