"""From a chat request to the sessions that answer it: text model, prompt, instance, one session a choice. No HTTP."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence

from bus.client import BusClient, RequestError
from bus.messages import InstanceEnsure, InstanceReady
from cluster.openings import Opening
from cluster.placement import Instance
from cluster.sampling import SEEDS, SamplingParams
from gateway.core.choice import ChoiceRun, ChoiceText
from gateway.core.data_plane import DataPlane
from gateway.core.errors import ApiError, from_bus, internal, queue_full, too_large
from gateway.core.events import Answer, Ended, Failed
from gateway.core.redaction import described
from gateway.core.text_models import TextModel, TextModels
from gateway.openai.requests import ChatRequest

logger = logging.getLogger(__name__)

ENSURE_WITHIN_S = 3600.0  # a first download counts in it; the client may leave whenever it likes
MAX_ANSWERS = 128  # being worked on at one time
DEFAULT_MAX_TOKENS = 2048  # a session reserves memory for all that it may say before it says the first word


class Chat:
    """Answers chat requests; holds what all answers share."""

    def __init__(self, bus: BusClient, texts: TextModels, plane: DataPlane) -> None:
        self._bus = bus
        self._texts = texts
        self._plane = plane
        self._running: set[Answer] = set()

    def tell(self, model_id: str, text: str) -> None:
        """There is news of a model: whoever waits for it hears it."""
        for answer in self._running:
            if answer.model_id == model_id:
                answer.waits_for = text

    async def run(self, answer: Answer) -> None:
        """Work an answer out, into its events; the last one is Ended or Failed. Cancel it to give the answer up."""
        try:
            await answer.events.put(await self._answer(answer))
        except ApiError as error:
            await answer.events.put(Failed(error))
        except Exception as error:
            logger.error("answering a chat request failed: %s", described(error))
            await answer.events.put(Failed(internal()))

    async def _answer(self, answer: Answer) -> Ended:
        if len(self._running) >= MAX_ANSWERS:
            raise queue_full(f"this gateway answers {MAX_ANSWERS} requests already; try again soon")
        self._running.add(answer)
        try:
            return await self._generate(answer)
        finally:
            self._running.discard(answer)

    async def _generate(self, answer: Answer) -> Ended:
        model, prompt = await self._prompt(answer)
        request, seed = answer.request, seed_of(answer.request)
        max_tokens = room_for(request, len(prompt), model.card.context_length)
        instance = await self._instance(answer)
        max_tokens = within_memory(max_tokens, len(prompt), instance)
        samplings = [sampling_of(request, model, (seed + choice) % SEEDS) for choice in range(request.choices)]
        eos, reply_to = model.tokenizer.eos_token_ids, self._plane.endpoints
        openings = [Opening(prompt, len(prompt), max_tokens, eos, sampling, reply_to) for sampling in samplings]
        answer.open(len(prompt))
        await self._all_choices(answer, model, instance, openings)
        return Ended(answer.timings(seed, len(set(instance.node_ids))))

    async def _prompt(self, answer: Answer) -> tuple[TextModel, tuple[int, ...]]:
        """The text model and the prompt's token ids."""
        card = self._texts.card(answer.request.model)
        answer.model_id = card.id
        answer.waits_for = f"fetching {card.id}"
        model = await self._texts.get(card)
        conversation = [message.for_template() for message in answer.request.messages]
        return model, await model.prompt(conversation)

    async def _instance(self, answer: Answer) -> Instance:
        answer.waits_for = f"loading {answer.model_id}"
        try:
            work = InstanceEnsure(answer.model_id)
            return (await self._bus.request("node", work, InstanceReady, ENSURE_WITHIN_S)).instance
        except RequestError as error:
            raise from_bus(error) from None

    async def _all_choices(
        self, answer: Answer, model: TextModel, instance: Instance, openings: Sequence[Opening]
    ) -> None:
        """Side by side; the first failure ends them all."""
        tasks = []
        for index, opening in enumerate(openings):
            choice = ChoiceRun(index, answer, ChoiceText(model, opening.eos, answer.request.stops))
            tasks.append(asyncio.create_task(choice.run(self._plane, self._bus, instance, opening)))
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def room_for(request: ChatRequest, prompt_tokens: int, context_length: int) -> int:
    """How many tokens a choice may have: what was asked for, else DEFAULT_MAX_TOKENS; at most the rest of the context.

    ApiError 400 with both numbers where the prompt leaves no room for one.
    """
    left = context_length - prompt_tokens
    if left < 1:
        sentence = (
            f"the prompt has {prompt_tokens} tokens, and the model's context holds {context_length} with at least "
            "one of the answer; shorten the messages"
        )
        raise ApiError(400, sentence, code="context_length_exceeded", param="messages")
    return min(request.token_limit or DEFAULT_MAX_TOKENS, left)


def within_memory(max_tokens: int, prompt_tokens: int, instance: Instance) -> int:
    """The same, at most what the smallest memory for keys and values of the ring holds beside the prompt.

    ApiError 400 with both numbers where the prompt leaves no room for one token. A stage that does not tell its
    memory sets no limit here; it refuses what is too large for it.
    """
    held = min((stage.positions for stage in instance.stages if stage.positions), default=0)
    if held and prompt_tokens >= held:
        sentence = (
            f"the prompt has {prompt_tokens} tokens, and the nodes' memory for keys and values holds {held} with at "
            "least one of the answer; shorten the messages, or give the nodes more (--kv-memory)"
        )
        raise too_large(sentence, "messages")
    return min(max_tokens, held - prompt_tokens) if held else max_tokens


def seed_of(request: ChatRequest) -> int:
    """The seed that was asked for, else a random one that every reader of JSON keeps exactly."""
    return secrets.randbits(53) if request.seed is None else request.seed


def sampling_of(request: ChatRequest, model: TextModel, seed: int) -> SamplingParams:
    """What was asked for, and where nothing was, what the model's card recommends."""
    defaults = model.card.defaults
    return SamplingParams(
        temperature=defaults.temperature if request.temperature is None else request.temperature,
        top_p=defaults.top_p if request.top_p is None else request.top_p,
        top_k=defaults.top_k if request.top_k is None else request.top_k,
        min_p=defaults.min_p if request.min_p is None else request.min_p,
        seed=seed,
    )
