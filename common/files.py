"""Files that are read whole, or written in one step. Knows nothing of the contents; `common.private_files` adds
permissions and error sentences.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def text_of(path: Path) -> str:
    """Return a file's text without blanks at its ends; "" if it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def write_atomic(path: Path, data: bytes | str, mode: int = 0o644) -> None:
    """Replace a file in one step, so that readers see the old content or the new one, also after a crash.

    The folder has to exist. Raises OSError, and leaves no partial file behind.
    """
    with replacing(path, mode) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def replacing(path: Path, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """Yield a new file that replaces `path` at the end of the block, as `write_atomic` does; not if the block fails."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
