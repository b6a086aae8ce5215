"""From a generation request to the sessions that answer it: text model, prompt, instance, one session a choice."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from bus.client import BusClient
from cluster.failures import FailureCode
from cluster.openings import Opening
from cluster.placement import Instance
from cluster.sampling import SEEDS, SamplingParams
from gateway.core.choice import ChoiceRun, ChoiceText
from gateway.core.data_plane import DataPlane
from gateway.core.errors import (
    ErrorKind,
    GatewayError,
    RequestField,
    error_of_session,
    internal,
    queue_full,
    unavailable,
)
from gateway.core.events import GenerationFailed, GenerationFinished
from gateway.core.generation import Generation
from gateway.core.instance_provider import InstanceProvider
from gateway.core.progress import LoadingModel, LoadingTokenizer, Progress, Queued, ReadingPrompt
from gateway.core.prompt_limit import prompt_limit
from gateway.core.redaction import describe
from gateway.core.request import GenerationRequest, SamplingOptions
from gateway.core.retries import Retries
from gateway.core.session import SessionFailed
from gateway.core.text_models import TextModel, TextModels
from models.card import ModelCard, SamplingDefaults

logger = logging.getLogger(__name__)

MAX_GENERATIONS = 128  # at a time
DEFAULT_MAX_TOKENS = 2048  # a session reserves memory for its whole answer before the first token


class Generator:
    """Runs generations; holds what all of them share."""

    def __init__(self, bus: BusClient, models: TextModels, plane: DataPlane, instances: InstanceProvider) -> None:
        self._bus = bus
        self._models = models
        self._plane = plane
        self._instances = instances
        self._running: set[Generation] = set()
        self._stopping = asyncio.Event()

    def report(self, model_id: str, progress: Progress) -> None:
        """Show progress of a model to the generations that wait for it; those with open sessions do not."""
        for generation in self._running:
            if generation.model_id == model_id and not isinstance(generation.progress, Queued | ReadingPrompt):
                generation.progress = progress

    def stop(self) -> None:
        """End all sessions with an error, and start no new ones for them."""
        self._stopping.set()
        self._plane.fail_where(lambda _: True, "this gateway is stopping; try again")

    @asynccontextmanager
    async def running(self, request: GenerationRequest) -> AsyncIterator[Generation]:
        """Run a generation during the block; the end of the block cancels what is left of it."""
        generation = Generation(request)
        task = asyncio.create_task(self._run(generation))
        try:
            yield generation
        finally:
            generation.close()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self, generation: Generation) -> None:
        """Put all events of a generation; a failure is the last of them."""
        try:
            if len(self._running) >= MAX_GENERATIONS:
                raise queue_full(f"this gateway answers {MAX_GENERATIONS} requests already; try again soon")
            self._running.add(generation)
            await generation.put(await self._generate(generation))
        except SessionFailed as failure:
            begun = generation.meter.completion_tokens > 0
            await generation.put(GenerationFailed(error_of_session(failure, begun=begun)))
        except GatewayError as error:
            await generation.put(GenerationFailed(error))
        except Exception as error:
            logger.error("a generation failed: %s", describe(error))
            await generation.put(GenerationFailed(internal()))
        finally:
            self._running.discard(generation)

    async def _generate(self, generation: Generation) -> GenerationFinished:
        """Run all choices, and try again while they fail before the first token for a reason that passes.

        Raises the last failure, SessionFailed or GatewayError.
        """
        work: _Prepared | None = None
        instance: Instance | None = None
        retries = Retries()
        while True:
            try:
                work = work or await self._prepare(generation)
                instance = await self._choose(generation, work.model.card, instance)
                await self._run_choices(generation, work, instance)
            except (SessionFailed, GatewayError) as failure:
                # If a task of a cancelled group fails, the group raises the failure and drops the cancellation.
                ended = self._stopping.is_set() or generation.closed
                if ended or generation.meter.completion_tokens:
                    raise
                if not (pause_s := retries.pause_s(failure, time.monotonic())) or await self._stops_within(pause_s):
                    raise
            else:
                meter, nodes = generation.meter, len(set(instance.node_ids))
                return GenerationFinished(meter.usage(), meter.timings(), work.seed, nodes)

    async def _stops_within(self, pause_s: float) -> bool:
        """Pause, unless the gateway stops meanwhile, and return whether it does."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), pause_s)
        return self._stopping.is_set()

    async def _choose(self, generation: Generation, card: ModelCard, failed: Instance | None) -> Instance:
        """Return the newest instance that is known; if none is, or after a failure, one that the placer names.

        That may be the one that failed, if all of its stages live: only a frame was lost. Raises GatewayError.
        """
        if not failed and (known := self._instances.newest(generation.model_id)):
            return known
        generation.progress = LoadingModel(generation.model_id)
        instance = await self._instances.ensure(card.hub_name)
        if failed and instance.instance_id == failed.instance_id and not await self._instances.responds(instance):
            sentence = f"not every stage of {generation.model_id} responds; try again"
            raise unavailable(FailureCode.NODE_LOST, sentence)
        return instance

    async def _prepare(self, generation: Generation) -> _Prepared:
        request = generation.request
        card = await self._models.card(request.model)
        generation.model_id = card.id
        generation.progress = LoadingTokenizer(card.id)
        model = await self._models.get(card)
        prompt = await model.tokens(request.prompt, prompt_limit(card))
        check_ids(prompt, card)
        max_tokens = token_limit(request.max_tokens, len(prompt), card.context_length)
        seed = secrets.randbits(53) if request.seed is None else request.seed  # readers of JSON keep 53 bits exactly
        return _Prepared(model, prompt, max_tokens, seed)

    async def _run_choices(self, generation: Generation, work: _Prepared, instance: Instance) -> None:
        """Run all choices side by side; the first failure ends the others."""
        request, prompt, tokenizer = generation.request, work.prompt, work.model.tokenizer
        max_tokens = memory_limit(work.max_tokens, len(prompt), instance)
        generation.start(len(prompt))
        try:
            async with asyncio.TaskGroup() as choices:
                for index in range(request.choices):
                    seed = (work.seed + index) % SEEDS
                    sampling = sampling_params(request.sampling, work.model.sampling, seed)
                    eos, reply_to = tokenizer.eos_token_ids, self._plane.endpoints
                    vocabulary = min(tokenizer.vocabulary, work.model.card.vocab_size)
                    opening = Opening(prompt, len(prompt), max_tokens, eos, sampling, reply_to, vocabulary=vocabulary)
                    choice = ChoiceRun(index, generation, ChoiceText(tokenizer, request.stops))
                    choices.create_task(choice.run(self._plane, self._bus, instance, opening))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None  # any others came while the rest was being cancelled


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What a generation needs besides an instance."""

    model: TextModel
    prompt: tuple[int, ...]
    max_tokens: int
    seed: int


def check_ids(prompt: Sequence[int], card: ModelCard) -> None:
    """Raise GatewayError if a prompt has a token that only the tokenizer knows: the model has no row for it."""
    if (largest := max(prompt)) >= card.vocab_size:
        sentence = f"the prompt has the token {largest}, and {card.id} knows {card.vocab_size}; leave it out"
        raise GatewayError(ErrorKind.INVALID_REQUEST, sentence, field=RequestField.PROMPT)


def token_limit(asked: int | None, prompt_tokens: int, context_length: int) -> int:
    """Return how many tokens a choice may have in the model's context.

    That is what was asked for, else DEFAULT_MAX_TOKENS, at most what the prompt leaves.
    """
    return min(asked or DEFAULT_MAX_TOKENS, context_length - prompt_tokens)


def memory_limit(max_tokens: int, prompt_tokens: int, instance: Instance) -> int:
    """Return `max_tokens`, or what the ring's smallest memory for keys and values holds beside the prompt.

    Raises GatewayError with both numbers if the prompt leaves no room for one token. A stage that does not name its
    positions sets no limit here; it refuses what is too large for it.
    """
    held = min((stage.positions for stage in instance.stages if stage.positions), default=0)
    if held and prompt_tokens >= held:
        sentence = (
            f"the prompt has {prompt_tokens} tokens, and the nodes' memory for keys and values holds {held} with at "
            "least one of the answer; shorten the messages, or give the nodes more (--kv-memory)"
        )
        code, field = FailureCode.TOO_LARGE, RequestField.PROMPT
        raise GatewayError(ErrorKind.TOO_LARGE, sentence, code=code, field=field, retryable=False)
    return min(max_tokens, held - prompt_tokens) if held else max_tokens


def sampling_params(options: SamplingOptions, defaults: SamplingDefaults, seed: int) -> SamplingParams:
    """Return the options that were asked for, and the model's defaults for the rest."""
    return SamplingParams(
        temperature=defaults.temperature if options.temperature is None else options.temperature,
        top_p=defaults.top_p if options.top_p is None else options.top_p,
        top_k=defaults.top_k if options.top_k is None else options.top_k,
        min_p=defaults.min_p if options.min_p is None else options.min_p,
        seed=seed,
    )
