"""`gateway.core.generation` and `gateway.core.meter`: progress in the queue, and what the prefix cache saved."""

from __future__ import annotations

import pytest

from gateway.core.generation import Generation
from gateway.core.progress import Progress, Queued, ReadingPrompt
from gateway.core.request import GenerationRequest, Text
from gateway.core.session import QueuePosition

PROMPT_TOKENS = 9


def started() -> Generation:
    """Return a generation of two choices whose sessions are open."""
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
def test_two_choices_show_the_next_in_the_queue_and_count_what_both_found(
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


def test_times_follow_each_other_from_the_opening_to_the_last_token() -> None:
    generation = started()
    for choice in range(2):
        generation.queued(choice, QueuePosition(0, 0))
    for _ in range(3):
        generation.meter.record_token()
    timings = generation.meter.timings()
    assert generation.meter.completion_tokens == 3
    assert min(timings.queued_s, timings.first_token_s, timings.decode_s) >= 0
