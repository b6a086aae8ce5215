"""The text side of models: card, tokenizer and chat template, loaded once per model."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from cachetools import LRUCache

from bus.client import BusClient, RequestError
from bus.messages import DownloadDone, DownloadWant, ModelDescribe, ModelDescribed
from gateway.core.errors import (
    ErrorKind,
    GatewayCode,
    GatewayError,
    RequestField,
    error_of_request,
    model_not_found,
    unavailable,
)
from gateway.core.prompt_limit import PromptLimit
from gateway.core.request import Conversation, Prompt, Text, TokenIds
from gateway.core.tokenizing import Tokenizing, encode_within
from models.cache import ModelCache
from models.card import ModelCard, SamplingDefaults, decode_card, travelling
from models.catalogue import Catalogue
from models.errors import BadName, ModelError, TemplateError, TemplateUnavailable, UnknownModel
from models.names import CatalogueName, LocalPath, parse_name
from models.templates.end_of_turn import text_after_answer
from models.templates.renderer import TemplateRenderer
from models.tokenizers.control_tokens import StandIns
from models.tokenizers.tokenizer import Tokenizer

FETCH_TIMEOUT_S = 3600.0  # a first download may take that long
DESCRIBE_TIMEOUT_S = 150.0  # the download actor gives up before
MAX_LOADED = 4  # models of which the text side stays in memory
MAX_NAMED = 8  # models that an error lists
MAX_DESCRIBED = 1024  # names that clients typed


@dataclass(frozen=True, slots=True)
class TextModel:
    """What turns prompts into token ids and token ids into text."""

    card: ModelCard
    tokenizer: Tokenizer
    renderer: TemplateRenderer
    tokenizing: Tokenizing

    @property
    def sampling(self) -> SamplingDefaults:
        """How to sample unless a request says: by the card, or by the model's files if the card says nothing."""
        said = self.card.defaults
        return said if said != SamplingDefaults() else self.tokenizer.sampling or said

    async def tokens(self, prompt: Prompt, limit: PromptLimit) -> tuple[int, ...]:
        """Return the token ids of a prompt; a long one does not hold up the loop.

        Raises GatewayError: an invalid request if the prompt is empty, or the template refuses it or exceeds its
        limits; too large if it has more tokens than `limit`; unavailable if no template can be rendered now, or too
        many long prompts are being tokenized.
        """
        match prompt:
            case Conversation():
                ids = await self._conversation_tokens(prompt, limit)
            case Text(text):
                ids = await self.tokenizing.encode(self.tokenizer, text, limit)
            case TokenIds(ids):
                limit.check_tokens(len(ids))
        if not ids:
            raise GatewayError(ErrorKind.INVALID_REQUEST, "the prompt is empty", field=RequestField.PROMPT)
        return ids

    async def _conversation_tokens(self, conversation: Conversation, limit: PromptLimit) -> tuple[int, ...]:
        """Return the token ids of a conversation. Control tokens that its texts contain are encoded as text."""
        text = await self._render(conversation)
        limit.check_characters(len(text), self.tokenizer.longest_token)

        def ids_or_stand_ins() -> tuple[int, ...] | StandIns:
            stand_ins = self.tokenizer.control_tokens.stand_ins(conversation.written)
            return stand_ins or encode_within(self.tokenizer, text, limit)

        # One turn in a thread for both: each thread that a tokenizer has run in keeps some of its memory.
        found = await self.tokenizing.run(len(text), ids_or_stand_ins)
        return await self._hidden_tokens(conversation, text, found, limit) if isinstance(found, StandIns) else found

    async def _hidden_tokens(
        self, conversation: Conversation, text: str, stand_ins: StandIns, limit: PromptLimit
    ) -> tuple[int, ...]:
        """Return the token ids of a conversation with the prompt `text`, without its texts' control tokens.

        A template may look into a text or cut it. So the prompt with stand-ins counts only if it is, with the control
        tokens put back, the prompt without stand-ins. Otherwise the control tokens are spoiled.
        """
        run, size = self.tokenizing.run, len(text)
        hidden = await self._render(await run(size, lambda: conversation.changed(stand_ins.hide)))
        if await run(size, lambda: stand_ins.restore(hidden) == text):
            return await self.tokenizing.encode(self.tokenizer.reading(stand_ins), hidden, limit)
        spoiled = await self._render(await run(size, lambda: conversation.changed(stand_ins.spoil)))
        return await self.tokenizing.encode(self.tokenizer, spoiled, limit)

    async def _render(self, conversation: Conversation) -> str:
        template = self.tokenizer.chat_template
        if template is None:
            sentence = f"{self.card.id} has no chat template; choose an instruct model"
            raise GatewayError(ErrorKind.INVALID_REQUEST, sentence, field=RequestField.MODEL)
        messages = [message.for_template() for message in conversation.messages]
        try:
            return await self.renderer.render(template, messages, True, **conversation.variables)
        except TemplateUnavailable as error:
            raise unavailable(GatewayCode.TEMPLATE_UNAVAILABLE, str(error)) from None
        except TemplateError as error:
            raise GatewayError(ErrorKind.INVALID_REQUEST, str(error), field=RequestField.PROMPT) from None


class TextModels:
    """Text models by card id, fetched and loaded on demand.

    A name of the hub for which a card was made stands for the same model as long as the gateway runs.
    """

    def __init__(self, bus: BusClient, catalogue: Catalogue, renderer: TemplateRenderer, cache: ModelCache) -> None:
        self.catalogue = catalogue
        self._cache = cache
        self._bus = bus
        self._renderer = renderer
        self._tokenizing = Tokenizing()
        self._loaded: LRUCache[str, TextModel] = LRUCache(MAX_LOADED)
        self._described: LRUCache[tuple[str, int], tuple[ModelCard, str]] = LRUCache(MAX_DESCRIBED)
        self._locks: LRUCache[str, asyncio.Lock] = LRUCache(MAX_DESCRIBED)

    async def card(self, name: str) -> ModelCard:
        """Return the card of an id, alias or name of the hub. Raises GatewayError, which names similar ones."""
        return (await self.described(name))[0]

    async def described(self, name: str, context: int = 0) -> tuple[ModelCard, str]:
        """Return the card of a name, and why this quantization of a model on the hub was chosen, if it was.

        A card that nobody has made yet is made from the hub, for chats of `context` positions. Raises GatewayError.
        """
        try:
            card = self.catalogue.get(name)
            if card.sized:
                return card, ""
        except UnknownModel as error:
            self._check_on_hub(name, error)
        async with self._locks.setdefault(name, asyncio.Lock()):
            if (name, context) not in self._described:
                self._described[name, context] = await self._describe(name, context)
            return self._described[name, context]

    def _check_on_hub(self, name: str, unknown: UnknownModel) -> None:
        """Raise GatewayError unless a name that no card has may be one of the hub."""
        try:
            parsed = parse_name(name)
        except BadName as error:
            raise model_not_found(str(error)) from None
        if isinstance(parsed, LocalPath):
            sentence = f"the API takes no paths; give {name} a name with `exobus models add {name}`, and use that"
            raise GatewayError(ErrorKind.INVALID_REQUEST, sentence, field=RequestField.MODEL)
        if isinstance(parsed, CatalogueName):
            here = [card.id for card in self.catalogue.cards() if self._cache.has(card)][:MAX_NAMED]
            raise model_not_found(f"{unknown}; on this machine are {', '.join(here) or 'none yet'}")

    async def _describe(self, name: str, context: int) -> tuple[ModelCard, str]:
        try:
            work = ModelDescribe(name, context)
            described = await self._bus.request("download", work, ModelDescribed, DESCRIBE_TIMEOUT_S)
            return decode_card(described.card, f"the card of {name}"), described.why
        except RequestError as error:
            raise error_of_request(error) from None

    async def get(self, card: ModelCard) -> TextModel:
        """Return the text side of a model; its files are fetched if they are missing. Raises GatewayError."""
        async with self._locks.setdefault(card.id, asyncio.Lock()):
            if card.id not in self._loaded:
                self._loaded[card.id] = await self._load(card)
            return self._loaded[card.id]

    async def _load(self, card: ModelCard) -> TextModel:
        want = DownloadWant(card.id, None, travelling(card))
        try:
            done = await self._bus.request("download", want, DownloadDone, FETCH_TIMEOUT_S)
            tokenizer = await asyncio.to_thread(Tokenizer.load, Path(done.folder))
            if tokenizer.chat_template is not None:
                tokenizer.end_turns_at(await text_after_answer(self._renderer, tokenizer.chat_template))
        except RequestError as error:
            raise error_of_request(error) from None
        except TemplateUnavailable as error:
            raise unavailable(GatewayCode.TEMPLATE_UNAVAILABLE, str(error)) from None
        except ModelError as error:  # the model's own files are unusable, and will be so the next time
            raise model_not_found(str(error)) from None
        return TextModel(card, tokenizer, self._renderer, self._tokenizing)
