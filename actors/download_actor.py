"""The download actor: serves `download.want` and publishes progress. `models.sources` fetches the files."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

from bus.actor import Actor, on
from bus.client import BusClient, RequestError
from bus.messages import DownloadDone, DownloadFailed, DownloadProgress, DownloadWant
from bus.process import run_actor
from bus.wire import Envelope
from cluster.failures import FailureCode
from cluster.shard import Shard
from common.config import NodeConfig
from models.cache import ModelCache
from models.card import ModelCard
from models.catalogue import Catalogue
from models.errors import CatalogueError, ModelError, UnknownModel, WrongCard
from models.sources.fetch import fetch
from models.sources.request import Progress

PROGRESS_EVERY_S = 0.25


class DownloadActor(Actor):
    """Runs one download of a model at a time; requests for the same model wait for it and then find the files."""

    name = "download"

    def __init__(self, config: NodeConfig, bus: BusClient) -> None:
        super().__init__(bus)
        self._catalogue = Catalogue.load(config.cards_path)
        self._cache = ModelCache(Path(config.cache_dir))
        self._locks: dict[str, asyncio.Lock] = {}

    @on(DownloadWant)
    async def want(self, message: DownloadWant, envelope: Envelope) -> DownloadDone:
        """Fetch the files that are missing. Cancelling the request ends its download.

        Fails with MODEL_NOT_FOUND, WRONG_CARD or DOWNLOAD_FAILED.
        """
        try:
            card = self._catalogue.get(message.model_id)
        except UnknownModel as error:
            raise RequestError(FailureCode.MODEL_NOT_FOUND, str(error)) from None
        async with self._locks.setdefault(card.id, asyncio.Lock()):
            path = await self._fetch(card, message.shard)
        return DownloadDone(str(path), str(self._cache.folder(card)))

    async def _fetch(self, card: ModelCard, shard: Shard | None) -> Path:
        cancelled = threading.Event()
        reports = _Reports(self.bus, card.id)
        try:
            return await asyncio.to_thread(fetch, card, shard, self._cache, reports.report, cancelled)
        except ModelError as error:
            await self.bus.publish(DownloadFailed(card.id, self.bus.node_id, str(error)))
            wrong_card = isinstance(error, WrongCard)
            raise RequestError(
                FailureCode.WRONG_CARD if wrong_card else FailureCode.DOWNLOAD_FAILED, str(error)
            ) from None
        finally:
            cancelled.set()


class _Reports:
    """Passes progress from the download's thread to the bus, a few times a second."""

    def __init__(self, bus: BusClient, model_id: str) -> None:
        self._bus = bus
        self._model_id = model_id
        self._loop = asyncio.get_running_loop()
        self._last = 0.0

    def report(self, progress: Progress) -> None:
        """Publish progress, unless that was done a moment ago. Runs on the download's thread."""
        now = time.monotonic()
        if now - self._last < PROGRESS_EVERY_S and progress.done_bytes < progress.total_bytes:
            return
        self._last = now
        fact = DownloadProgress(
            self._model_id, self._bus.node_id, progress.done_bytes, progress.total_bytes, progress.file
        )
        asyncio.run_coroutine_threadsafe(self._bus.publish(fact), self._loop)


if __name__ == "__main__":
    run_actor(DownloadActor, DownloadActor.name, fatal=CatalogueError)
