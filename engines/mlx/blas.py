"""A fast BLAS for MLX on Linux CPUs, if the machine has one.

MLX's wheel contains the reference BLAS: its matrix products run at a tenth of a core's speed or less. The symbols of
a library that is loaded globally take precedence over those of the wheel's own, so no file has to change.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files

SYSTEM_LIBRARY = "libopenblas.so.0"
"""The name that Linux distributions give OpenBLAS."""


def load_fast_blas() -> None:
    """Load the package `mkl` or else the system's OpenBLAS, if the machine has one, before MLX is imported.

    On other systems than Linux MLX needs no replacement.
    """
    for library in _candidates() if sys.platform == "linux" else ():
        try:
            ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
        except OSError:
            continue  # not installed, or a library that it needs is missing
        return


def _candidates() -> Iterator[str]:
    try:
        installed = files("mkl") or []
    except PackageNotFoundError:
        installed = []
    for file in installed:
        if file.name.startswith("libmkl_rt.so"):
            yield str(file.locate())
    yield SYSTEM_LIBRARY
