"""Files that only their owner may open: keys, join codes, member lists. Knows permissions, not what a file holds."""

from __future__ import annotations

import os
from pathlib import Path

from common.files import write_atomic

FOR_OTHERS = 0o077  # the mode bits of group and others


class PrivateFileError(OSError):
    """A private file cannot be used; the message is one sentence with the next step."""


def is_private(status: os.stat_result) -> bool:
    """Return whether a file or folder belongs to this user and is closed to all others."""
    return status.st_uid == os.getuid() and not status.st_mode & FOR_OTHERS


def read_private(path: Path, most: int = 4096) -> str:
    """Return the first `most` bytes of a file as text, stripped.

    Raises PrivateFileError if the file cannot be read, is a symbolic link, or may be read by others.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            if not is_private(os.fstat(file.fileno())):
                raise PrivateFileError(f"{path} can be read by others; make it yours alone with: chmod 600 {path}")
            return file.read(most).decode("utf-8", "replace").strip()
    except PrivateFileError:
        raise
    except OSError as error:
        raise PrivateFileError(f"{path} cannot be read ({error.strerror}); check its owner and mode") from None


def write_private(path: Path, line: str) -> None:
    """Write one line to a file of mode 0600, atomically, and make its folder if need be. Raises PrivateFileError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(path, line + "\n", 0o600)
    except OSError as error:
        raise PrivateFileError(f"{path} cannot be written ({error.strerror}); check the folder") from None
