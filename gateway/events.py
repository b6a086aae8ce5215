"""One answer while it is worked out, and the events that it gives. Pure but for the queue."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from gateway.chunks import Timings
from gateway.errors import ApiError
from gateway.requests import ChatRequest

EVENTS = 64  # between the sessions and whoever writes the response; a slow reader makes the sessions' tasks wait


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one choice."""

    choice: int
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """One choice is over: `stop` or `length`."""

    choice: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """All choices are over."""

    timings: Timings


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer cannot go on."""

    error: ApiError


Event = Piece | Finished | Ended | Failed


@dataclass(slots=True, eq=False)
class Answer:
    """A request being answered: its events, and in words what it waits for until the first. Times are monotonic."""

    request: ChatRequest
    model_id: str = ""
    waits_for: str = "preparing"
    events: asyncio.Queue[Event] = field(default_factory=lambda: asyncio.Queue(EVENTS))
    opened: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    completion_tokens: int = 0

    def count_token(self) -> None:
        """A token came, in whichever choice."""
        self.last_token = time.monotonic()
        self.first_token = self.first_token or self.last_token
        self.completion_tokens += 1

    def timings(self, prompt_tokens: int, seed: int, nodes: int) -> Timings:
        """What there is to say once every choice is over: each has had one token or more."""
        return Timings(
            prompt_tokens=prompt_tokens,
            first_token_s=self.first_token - self.opened,
            completion_tokens=self.completion_tokens,
            decode_s=self.last_token - self.first_token,
            seed=seed,
            nodes=nodes,
        )
