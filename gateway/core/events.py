"""One answer while it is worked out, and the events that it gives. Pure but for the queue."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from gateway.core.errors import ApiError
from gateway.core.session import QueuePosition
from gateway.openai.chunks import Timings
from gateway.openai.requests import ChatRequest

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
    places: dict[int, QueuePosition] = field(default_factory=dict)  # of the choices that were told one
    prompt_tokens: int = 0
    opened: float = 0.0
    admitted: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    completion_tokens: int = 0

    def open(self, prompt_tokens: int) -> None:
        """Its sessions are about to open."""
        self.prompt_tokens = prompt_tokens
        self.opened = time.monotonic()
        self._say_what_it_waits_for()

    def place(self, choice: int, place: QueuePosition) -> None:
        """Where the session of one choice stands in the queue."""
        self.places[choice] = place
        if not place.ahead:
            self.admitted = self.admitted or time.monotonic()
        self._say_what_it_waits_for()

    def count_token(self) -> None:
        """A token came, in whichever choice."""
        self.last_token = time.monotonic()
        self.first_token = self.first_token or self.last_token
        self.completion_tokens += 1

    def timings(self, seed: int, nodes: int) -> Timings:
        """What there is to say once every choice is over: each has had one token or more."""
        begun = self.admitted or self.opened
        return Timings(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            queued_s=begun - self.opened,
            first_token_s=self.first_token - begun,
            completion_tokens=self.completion_tokens,
            decode_s=self.last_token - self.first_token,
            seed=seed,
            nodes=nodes,
        )

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were in the cache when the request came: what every choice found there.

        A prompt counts once however many choices there are, and a choice that finds the prompt of the choice before
        it saves nothing that this count should show.
        """
        found = [place.cached for place in self.places.values()]
        return min(found) if len(found) == self.request.choices else 0

    def _say_what_it_waits_for(self) -> None:
        """The choice that is served next speaks for the others."""
        if ahead := [place.ahead for place in self.places.values() if place.ahead]:
            few = min(ahead)
            self.waits_for = f"{few} answers are ahead of yours" if few > 1 else "1 answer is ahead of yours"
        else:
            self.waits_for = f"reading a prompt of {self.prompt_tokens} tokens"
