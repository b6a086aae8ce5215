"""What a generation yields: deltas of its choices, their ends, and its own end with usage and timings. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gateway.core.errors import GatewayError


class FinishReason(StrEnum):
    """Why a choice ended by itself."""

    STOP = "stop"  # the model's end token, or a stop string
    LENGTH = "length"  # the token limit


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts. The prompt counts once however many choices there are; `cached_tokens` of it were not computed."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds.

    `first_token_s` runs from the end of the queue to the first token of any choice, `decode_s` from there to the last.
    """

    queued_s: float
    first_token_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of one choice, never half a character."""

    choice: int
    text: str


Delta = TextDelta
"""What is added to a choice. Tool calls and reasoning will be further members of this union."""


@dataclass(frozen=True, slots=True)
class ChoiceFinished:
    """One choice is complete."""

    choice: int
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class GenerationFinished:
    """All choices are complete. `seed` is the first choice's; `nodes` is how many nodes took part."""

    usage: Usage
    timings: Timings
    seed: int
    nodes: int


@dataclass(frozen=True, slots=True)
class GenerationFailed:
    """The generation cannot continue; no event follows."""

    error: GatewayError


Event = Delta | ChoiceFinished | GenerationFinished | GenerationFailed
