"""`gateway.core.generation` and `gateway.core.meter`: progress in the queue, and cached tokens."""

from __future__ import annotations

import asyncio

import pytest

from gateway.core.events import TextDelta
from gateway.core.generation import MAX_EVENTS, Generation
from gateway.core.progress import Progress, Queued, ReadingPrompt
from gateway.core.request import GenerationRequest, Text
from gateway.core.session import QueuePosition

PROMPT_TOKENS = 9


def started() -> Generation:
    """Return a generation of two choices with open sessions."""
    generation = Generation(GenerationRequest("tiny", Text("hello"), choices=2))
    generation.start(PROMPT_TOKENS)
    return generation


@pytest.mark.parametrize(
    ("positions", "progress", "cached"),
    [
        ({}, ReadingPrompt(PROMPT_TOKENS), 0),
        ({0: QueuePosition(3, 0)}, Queued(3), 0),
        ({0: QueuePosition(3, 0), 1: QueuePosition(1, 0)}, Queued(1), 0),
        ({0: QueuePosition(0, 4), 1: QueuePosition(2, 0)}, Queued(2), 0),
        ({0: QueuePosition(0, 4)}, ReadingPrompt(PROMPT_TOKENS), 0),
        ({0: QueuePosition(0, 4), 1: QueuePosition(0, 8)}, ReadingPrompt(PROMPT_TOKENS), 4),
    ],
)
def test_two_choices_share_progress_and_cached_tokens(
    positions: dict[int, QueuePosition], progress: Progress, cached: int
) -> None:
    generation = started()
    for choice, position in positions.items():
        generation.queued(choice, position)
    usage = generation.meter.usage()
    assert (generation.progress, usage.prompt_tokens, usage.cached_tokens) == (progress, PROMPT_TOKENS, cached)


def test_second_start_forgets_the_first_queue() -> None:
    generation = started()
    generation.queued(0, QueuePosition(3, 0))
    generation.start(PROMPT_TOKENS)
    assert generation.meter.ahead == 0
    assert generation.progress == ReadingPrompt(PROMPT_TOKENS)


def test_timings_are_never_negative() -> None:
    generation = started()
    for choice in range(2):
        generation.queued(choice, QueuePosition(0, 0))
    for _ in range(3):
        generation.meter.record_token()
    timings = generation.meter.timings()
    assert generation.meter.completion_tokens == 3
    assert min(timings.queued_s, timings.first_token_s, timings.decode_s) >= 0


def test_closed_generation_drops_events_instead_of_waiting() -> None:
    async def test() -> None:
        generation = started()
        for _ in range(MAX_EVENTS):
            await generation.put(TextDelta(0, "text"))
        generation.close()
        async with asyncio.timeout(5.0):
            await generation.put(TextDelta(0, "more"))

    asyncio.run(test())
