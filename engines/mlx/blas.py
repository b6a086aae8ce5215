"""A fast BLAS for MLX on the CPU of a Linux machine that has one. Knows nothing of MLX but that its symbols are open.

MLX's wheel brings the reference BLAS, whose matrix products run at a tenth of a core's speed or less. Symbols of a
library that is loaded for the whole process come before those of the wheel's own, so nothing on the disk changes.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files

SYSTEM_LIBRARY = "libopenblas.so.0"
"""OpenBLAS under the name that Linux distributions give it."""


def load_fast_blas() -> str | None:
    """Load the first library that is there, the package `mkl` or the system's OpenBLAS, and answer its name.

    It has to happen before MLX is imported. None where there is none, and on systems whose MLX does without.
    """
    for library in _candidates() if sys.platform == "linux" else ():
        try:
            ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
        except OSError:
            continue  # not installed, or it lacks a library of its own
        return library
    return None


def _candidates() -> Iterator[str]:
    try:
        installed = files("mkl") or []
    except PackageNotFoundError:
        installed = []
    for file in installed:
        if file.name.startswith("libmkl_rt.so"):
            yield str(file.locate())
    yield SYSTEM_LIBRARY
