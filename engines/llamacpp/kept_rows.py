"""Keeps how many rows of a shard are exact, in the model cache: measuring takes longer than loading the shard does."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from common.files import text_of, write_atomic
from common.processor import processor_name
from engines.llamacpp.library import library_file
from engines.llamacpp.row_check import SIZES
from engines.llamacpp.shard_file import FOLDER, name_of
from models.cache import default_cache_root

logger = logging.getLogger(__name__)

POSSIBLE = frozenset(map(str, (1, *SIZES)))
"""What can be kept. Anything else is a damaged file, and a number that is too large would change bits."""


def kept_rows(shard: Path, measure: Callable[[], int], root: Path | None = None) -> int:
    """Return what is kept for the shard file in the cache under `root`, or measure it and keep that.

    It is kept for the file as it is now, this library and this processor. If nothing can be read or written, that costs
    a measurement.
    """
    kernels = hashlib.sha256(f"{name_of(library_file())}\n{processor_name()}".encode()).hexdigest()[:16]
    file = (root or default_cache_root()) / FOLDER / f"{name_of(shard)}-{kernels}.rows"
    kept = text_of(file)
    if kept in POSSIBLE:
        return int(kept)
    rows = measure()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, str(rows))
    except OSError as error:
        logger.info("%s cannot be written (%s): the rows are measured again next time", file, error.strerror)
    return rows
