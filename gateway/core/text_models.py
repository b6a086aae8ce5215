"""The text side of models: card, tokenizer and chat template, loaded once per model. No HTTP, no token generation."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bus.client import BusClient, RequestError
from bus.messages import DownloadDone, DownloadWant
from gateway.core.errors import ApiError, from_bus, model_not_found, unavailable
from models.card import ModelCard
from models.catalogue import Catalogue
from models.errors import ModelError, TemplateError, TemplateUnavailable, UnknownModel
from models.templates.chat_template import ChatTemplate
from models.templates.renderer import TemplateRenderer
from models.tokenizer import Tokenizer

FETCH_WITHIN_S = 3600.0  # a first download may take that long
KEPT = 4  # models whose text side stays in memory
SHORT = 2048  # characters that are tokenised in less time than a thread is worth


@dataclass(frozen=True, slots=True)
class TextModel:
    """What turns messages into token ids and token ids into text."""

    card: ModelCard
    tokenizer: Tokenizer
    template: ChatTemplate
    renderer: TemplateRenderer

    async def prompt(self, conversation: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """The token ids of a conversation; a long one does not hold up the loop.

        ApiError 400 where the template refuses it or goes beyond its limits, 503 where none can be rendered now.
        """
        try:
            text = await self.renderer.render(self.template, conversation)
        except TemplateUnavailable as error:
            raise unavailable("template_unavailable", str(error)) from None
        except TemplateError as error:
            raise ApiError(400, str(error), param="messages") from None
        return await self._encoded(text)

    async def _encoded(self, text: str) -> tuple[int, ...]:
        encode = self.tokenizer.encode
        return tuple(encode(text) if len(text) <= SHORT else await asyncio.to_thread(encode, text))


class TextModels:
    """Text models by card id, fetched and loaded on demand."""

    def __init__(self, bus: BusClient, catalogue: Catalogue, renderer: TemplateRenderer) -> None:
        self.catalogue = catalogue
        self._bus = bus
        self._renderer = renderer
        self._loaded: OrderedDict[str, TextModel] = OrderedDict()
        self._locks: dict[str, asyncio.Lock] = {}

    def card(self, model_id: str) -> ModelCard:
        """The card of an id or alias. ApiError 404 names near ones."""
        try:
            return self.catalogue.get(model_id)
        except UnknownModel as error:
            raise model_not_found(str(error)) from None

    async def get(self, card: ModelCard) -> TextModel:
        """The text side of a model; its files are fetched where they are missing. ApiError 503 where that fails."""
        async with self._locks.setdefault(card.id, asyncio.Lock()):
            model = self._loaded.get(card.id) or await self._load(card)
        self._loaded[card.id] = model
        self._loaded.move_to_end(card.id)
        while len(self._loaded) > KEPT:
            self._loaded.popitem(last=False)
        return model

    async def _load(self, card: ModelCard) -> TextModel:
        try:
            done = await self._bus.request("download", DownloadWant(card.id), DownloadDone, FETCH_WITHIN_S)
            tokenizer = await asyncio.to_thread(Tokenizer.load, Path(done.folder))
        except RequestError as error:
            raise from_bus(error) from None
        except ModelError as error:
            raise unavailable("tokenizer_failed", str(error)) from None
        if tokenizer.chat_template is None:
            raise ApiError(400, f"{card.id} has no chat template; choose an instruct model", param="model")
        return TextModel(card, tokenizer, tokenizer.chat_template, self._renderer)
