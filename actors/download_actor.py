"""The download actor: serves `download.want` and `model.describe`, and publishes progress.

`models.sources` fetches the files and makes the cards. No other process of a node reads from the hub.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bus.actor import Actor, every, on
from bus.client import BusClient, RequestError
from bus.messages import (
    DownloadDone,
    DownloadFailed,
    DownloadProgress,
    DownloadWant,
    ModelDescribe,
    ModelDescribed,
    Status,
    TopologyGet,
    TopologyState,
)
from bus.process import run_actor
from bus.wire import Envelope
from cluster.capabilities import DeviceCapabilities
from cluster.failures import FailureCode
from cluster.shard import Shard
from common.config import NodeConfig
from models.cache import ModelCache
from models.card import FolderSource, HubSource, ModelCard, travelling, with_sizes_of
from models.catalogue import Catalogue, write_card
from models.errors import (
    BadName,
    CatalogueError,
    DownloadError,
    ModelError,
    NotOnHub,
    TemplateError,
    TokenizerError,
    UnknownModel,
    WeightsError,
    WrongCard,
)
from models.names import AUTO, HubName, parse_name
from models.sources.described import Described
from models.sources.fetch import describe, fetch
from models.sources.lookups import MAX_LOOKUPS, Lookups, TooManyLookups
from models.sources.request import Progress

if TYPE_CHECKING:
    from models.models_folder import ModelsFolder

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 0.25
LOOK_EVERY_S = 2.0
TOPOLOGY_TIMEOUT_S = 3.0
DESCRIBE_TIMEOUT_S = 120.0  # for a few MB over a slow line


class DownloadActor(Actor):
    """Runs one download of a model at a time; requests for the same model wait for it and then find the files."""

    name = "download"

    def __init__(self, config: NodeConfig, bus: BusClient) -> None:
        super().__init__(bus)
        self._config = config
        self._catalogue = Catalogue.of_node(config)
        self._cache = ModelCache(Path(config.cache_dir))
        self._locks: dict[str, asyncio.Lock] = {}
        self._lookups = Lookups()
        self._describing = ThreadPoolExecutor(MAX_LOOKUPS, "describe")  # a hub that hangs must not delay downloads
        self._folder = self._models_folder(Path(config.models_dir)) if config.models_dir else None

    def _models_folder(self, folder: Path) -> ModelsFolder:
        from models.models_folder import ModelsFolder  # it reads weights: most nodes need no array library for it

        return ModelsFolder(folder, self._config.listed_cards_path, self._taken)

    @every(LOOK_EVERY_S)
    async def look(self) -> None:
        """Follow what comes into the user's folder of models, and what leaves it."""
        if self._folder is not None:
            for sentence in await asyncio.to_thread(self._folder.update):
                logger.warning("%s", sentence)

    def _taken(self, model_id: str) -> bool:
        """Return whether another model than one in the user's folder has an id."""
        with suppress(UnknownModel):
            source = self._catalogue.get(model_id).source
            return not (isinstance(source, FolderSource) and source.path.is_relative_to(self._config.models_dir))
        return False

    @on(DownloadWant)
    async def want(self, message: DownloadWant, envelope: Envelope) -> DownloadDone:
        """Fetch the files that are missing. Cancelling the request ends its download.

        Fails with MODEL_NOT_FOUND, WRONG_CARD or DOWNLOAD_FAILED.
        """
        try:
            card = self._catalogue.received(message.model_id, message.card)
        except (UnknownModel, CatalogueError) as error:
            raise RequestError(FailureCode.MODEL_NOT_FOUND, str(error)) from None
        async with self._locks.setdefault(card.id, asyncio.Lock()):
            path = await self._fetch(card, message.shard)
        return DownloadDone(str(path), str(self._cache.folder(card)))

    @on(ModelDescribe)
    async def describe(self, message: ModelDescribe, envelope: Envelope) -> ModelDescribed:
        """Make the card of a model on the hub, and put it into the catalogue. Fails as `want` does."""
        try:
            held, name = self._known(message.name)
            if held is not None and held.sized:
                return ModelDescribed(travelling(held))
            described = await self._describe(name, message.context)
            card = with_sizes_of(held, described.card) if held else described.card
            await asyncio.to_thread(write_card, self._cache.cards_folder, card)
            if described.why:
                await self.bus.publish(Status(card.id, f"{card.id}: {described.why}"))
        except ModelError as error:
            raise RequestError(_code_of(error), str(error)) from None
        except OSError as error:
            sentence = f"the model cache {self._cache.root} cannot be written ({error.strerror}); set EXOBUS_CACHE"
            raise RequestError(FailureCode.DOWNLOAD_FAILED, sentence) from None
        return ModelDescribed(travelling(card), described.why)

    def _known(self, text: str) -> tuple[ModelCard | None, HubName]:
        """Return the card of a name, if there is one, and where on the hub the model is. Raises a ModelError."""
        try:
            card = self._catalogue.get(text)
        except UnknownModel:
            name = parse_name(text)
            if not isinstance(name, HubName):
                raise
            return None, name
        source = card.source if isinstance(card.source, HubSource) else HubSource(card.id)
        return card, HubName(source.repo, "" if source.revision == "main" else source.revision)

    async def _describe(self, name: HubName, context: int) -> Described:
        """Make a card, for the memory that is free in the cluster if a quantization has to be chosen."""
        cancelled, nodes = threading.Event(), list[DeviceCapabilities]()
        if name.quant in ("", AUTO):
            with suppress(RequestError):
                state = await self.bus.request("topology", TopologyGet(), TopologyState, TOPOLOGY_TIMEOUT_S)
                nodes = [node.capabilities for node in state.topology.nodes]
        work = partial(describe, name, self._cache, nodes, context, cancelled)
        try:
            with self._lookups.lookup(str(name)):
                return await self._in_time(asyncio.get_running_loop().run_in_executor(self._describing, work), name)
        except NotOnHub:
            raise
        except DownloadError as error:
            if name.quant in ("", AUTO) and (made := self._catalogue.made_from(name.repo)):
                return Described(made[-1], f"{made[-1].made_from} is known here, and {error}")
            raise
        finally:
            cancelled.set()

    async def _in_time(self, describing: asyncio.Future[Described], name: HubName) -> Described:
        try:
            async with asyncio.timeout(DESCRIBE_TIMEOUT_S):
                return await describing
        except TimeoutError:
            sentence = (
                f"the hub did not say in {DESCRIBE_TIMEOUT_S:g} s what {name} is; check the network and try again"
            )
            raise DownloadError(sentence) from None

    async def _fetch(self, card: ModelCard, shard: Shard | None) -> Path:
        cancelled = threading.Event()
        reports = _Reports(self.bus, card.id)
        try:
            return await asyncio.to_thread(fetch, card, shard, self._cache, reports.report, cancelled)
        except ModelError as error:
            await self.bus.publish(DownloadFailed(card.id, self.bus.node_id, str(error)))
            code = FailureCode.DOWNLOAD_FAILED if isinstance(error, WeightsError) else _code_of(error)
            raise RequestError(code, str(error)) from None
        finally:
            cancelled.set()


def _code_of(error: ModelError) -> FailureCode:
    """Return the code of a failed fetch or lookup: most pass, but not those that lie in the name or the model."""
    match error:
        case UnknownModel() | BadName() | NotOnHub() | WeightsError() | TokenizerError() | TemplateError():
            return FailureCode.MODEL_NOT_FOUND
        case TooManyLookups():
            return FailureCode.QUEUE_FULL
        case WrongCard():
            return FailureCode.WRONG_CARD
        case _:
            return FailureCode.DOWNLOAD_FAILED


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
