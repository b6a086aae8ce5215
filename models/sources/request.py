"""One fetch of a model: what it is for, how it reports progress, and when it stops. Knows no source."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import msgspec
from filelock import FileLock, Timeout

from cluster.shard import Shard
from models.cache import ModelCache
from models.card import ModelCard
from models.errors import DownloadCancelled, DownloadError

LOCK_TIMEOUT_S = 3600.0
_LOCK_POLL_S = 0.5
_SPARE_BYTES = 64 << 20


class Progress(msgspec.Struct, frozen=True):
    """How far a fetch is: bytes of all its files together, and the file that is arriving now."""

    done_bytes: int
    total_bytes: int
    file: str


Report = Callable[[Progress], None]


class FetchRequest(msgspec.Struct, frozen=True):
    """What to fetch, where to put it, and how to report. Without a `shard` it is what a gateway needs: text files."""

    card: ModelCard
    shard: Shard | None
    cache: ModelCache
    report: Report
    cancelled: Event

    def check_cancelled(self) -> None:
        """Raise DownloadCancelled once `cancelled` is set."""
        if self.cancelled.is_set():
            raise DownloadCancelled(
                f"the download of {self.card.id} was cancelled; ask for the model again to continue"
            )

    @property
    def folder(self) -> Path:
        """The card's folder in the cache, which need not exist."""
        return self.cache.root / self.card.id

    @contextmanager
    def locked_folder(self) -> Iterator[Path]:
        """Hold the card's folder in the cache, which is made if it does not exist, against all other processes.

        Reports the progress of the process that holds it, as far as file sizes show it. Raises DownloadError after
        `LOCK_TIMEOUT_S` or if the folder cannot be written, and DownloadCancelled.
        """
        root, folder = self.cache.root, self.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.cache.lock_file(self.card))
            self._acquire(lock, folder)
        except (OSError, NotImplementedError) as error:  # the latter if the file system has no locks
            reason = getattr(error, "strerror", None) or "it has no locks"
            raise DownloadError(
                f"the model cache {root} cannot be written ({reason}); set EXOBUS_CACHE to another folder"
            ) from error
        try:
            yield folder
        finally:
            lock.release()

    def _acquire(self, lock: FileLock, folder: Path) -> None:
        card, deadline = self.card, time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                lock.acquire(timeout=_LOCK_POLL_S)
                return
            except Timeout:
                self.check_cancelled()
                self.report(Progress(min(_bytes_under(folder), card.size_bytes), card.size_bytes, card.id))
            if time.monotonic() > deadline:
                raise DownloadError(f"another process has been fetching {card.id} for an hour; end it and try again")


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raise DownloadError unless the disk of `folder` has `needed_bytes` and a little more to spare."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + _SPARE_BYTES:
        raise DownloadError(
            f"{needed_bytes / 1e6:.0f} MB are needed in {folder} and {free / 1e6:.0f} MB are free; "
            "make room or set EXOBUS_CACHE to a folder on another disk"
        )


def _bytes_under(folder: Path) -> int:
    """Add up the sizes of all files in the folder; files that vanish meanwhile count as nothing."""
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            try:
                status = os.stat(os.path.join(parent, file))
                total += min(status.st_size, 512 * status.st_blocks)  # headers lie in sparse files
            except FileNotFoundError:
                continue
    return total
