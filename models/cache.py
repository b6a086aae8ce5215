"""The model files that all nodes of a machine share: a folder, a lock and a record of what is whole for each.

Knows no source: who fetches decides what to fetch, and adds here what it has checked.
"""

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
from platformdirs import user_cache_path

from cluster.shard import Shard
from models.card import FolderSource, ModelCard
from models.errors import DownloadCancelled, DownloadError
from models.files import sha256_of, write_whole

LOCK_DEADLINE_S = 3600.0
_LOCK_POLL_S = 0.5
_SPARE_BYTES = 64 << 20
_RECORD = ".exobus.json"


class Progress(msgspec.Struct, frozen=True):
    """How far a fetch is: bytes of all its files together, and the file that is moving now."""

    done_bytes: int
    total_bytes: int
    file: str


Report = Callable[[Progress], None]


class CachedFile(msgspec.Struct, frozen=True):
    """A file that was whole when it was recorded."""

    size: int
    mtime_ns: int
    sha256: str


class Record(msgspec.Struct):
    """What a model's folder holds; `revision` is the commit that the files are of."""

    revision: str = ""
    files: dict[str, CachedFile] = {}


def default_cache_root() -> Path:
    """`EXOBUS_CACHE`, or the user's cache folder of the platform."""
    named = os.environ.get("EXOBUS_CACHE")
    return Path(named).expanduser() if named else user_cache_path("exobus") / "models"


class ModelCache:
    """Models under `root`, each in a folder named by its id."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, card: ModelCard) -> Path:
        """Where the card's config and tokenizer are; a model folder of the user's own stays in place."""
        if isinstance(card.source, FolderSource) and card.source.path.is_dir():
            return card.source.path
        return self.root / card.id

    @contextmanager
    def locked(self, card: ModelCard, report: Report, cancelled: Event) -> Iterator[Path]:
        """The card's folder, made and held alone; while another process fetches, report how far it is.

        DownloadFailed after `LOCK_DEADLINE_S`, or when the folder cannot be written; DownloadCancelled.
        """
        folder = self.root / card.id
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / f".{card.id}.lock")
            self._acquire(lock, card, folder, report, cancelled)
        except OSError as error:
            raise DownloadError(
                f"the model cache {self.root} cannot be written ({error.strerror}); set EXOBUS_CACHE to another folder"
            ) from error
        try:
            yield folder
        finally:
            lock.release()

    def _acquire(self, lock: FileLock, card: ModelCard, folder: Path, report: Report, cancelled: Event) -> None:
        deadline = time.monotonic() + LOCK_DEADLINE_S
        while True:
            try:
                lock.acquire(timeout=_LOCK_POLL_S)
                return
            except Timeout:
                check_cancelled(card, cancelled)
                report(Progress(min(_bytes_under(folder), card.size_bytes), card.size_bytes, card.id))
            if time.monotonic() > deadline:
                raise DownloadError(f"another process has been fetching {card.id} for an hour; end it and try again")


class Fetch(msgspec.Struct, frozen=True):
    """What to fetch, where to, and how to tell of it; `shard` None means what a gateway needs."""

    card: ModelCard
    shard: Shard | None
    cache: ModelCache
    report: Report
    cancelled: Event

    def check_cancelled(self) -> None:
        """DownloadCancelled once the fetch was given up."""
        check_cancelled(self.card, self.cancelled)


def check_cancelled(card: ModelCard, cancelled: Event) -> None:
    """DownloadCancelled once `cancelled` is set."""
    if cancelled.is_set():
        raise DownloadCancelled(f"the download of {card.id} was cancelled; ask for the model again to go on with it")


def check_space(folder: Path, needed_bytes: int) -> None:
    """DownloadFailed unless `needed_bytes` and a little more are free on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + _SPARE_BYTES:
        raise DownloadError(
            f"{needed_bytes / 1e6:.0f} MB are needed in {folder} and {free / 1e6:.0f} MB are free; "
            "make room or set EXOBUS_CACHE to a folder on another disk"
        )


def read_record(folder: Path) -> Record:
    """What is recorded of `folder`; nothing if the record is absent or damaged: all is fetched anew."""
    try:
        return msgspec.json.decode((folder / _RECORD).read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return Record()


def write_record(folder: Path, record: Record) -> None:
    """Replace the record of `folder`."""
    write_whole(folder / _RECORD, msgspec.json.encode(record))


def checked_file(path: Path, sha256: str) -> CachedFile:
    """The record of a file that was just fetched and has this hash."""
    status = path.stat()
    return CachedFile(status.st_size, status.st_mtime_ns, sha256)


def is_whole(path: Path, recorded: CachedFile | None) -> bool:
    """Whether `path` is the file recorded: by size and time, or by its hash when only the time differs."""
    if recorded is None or not path.is_file():
        return False
    status = path.stat()
    if status.st_size != recorded.size:
        return False
    return status.st_mtime_ns == recorded.mtime_ns or sha256_of(path) == recorded.sha256


def _bytes_under(folder: Path) -> int:
    """Bytes of all files in the folder now; files that vanish meanwhile count as nothing."""
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.stat(os.path.join(parent, file)).st_size
            except FileNotFoundError:
                continue
    return total
