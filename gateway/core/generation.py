"""One request while it is answered: its events in order, and what it waits for until the first."""

from __future__ import annotations

import asyncio

from gateway.core.events import Event
from gateway.core.meter import GenerationMeter
from gateway.core.progress import Preparing, Progress, Queued, ReadingPrompt
from gateway.core.request import GenerationRequest
from gateway.core.session import QueuePosition

MAX_EVENTS = 64  # between the sessions and the response; a slow client makes the sessions' tasks wait


class Generation:
    """A request, the queue of its events, and its measurements.

    `model_id` is empty until the model is known. Once it is `closed`, nothing reads its events any more.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.model_id = ""
        self.progress: Progress = Preparing()
        self.meter = GenerationMeter(request.choices)
        self._events: asyncio.Queue[Event] = asyncio.Queue(MAX_EVENTS)
        self.closed = False

    async def next_event(self) -> Event:
        """Wait for the next event; the last one is GenerationFinished or GenerationFailed."""
        return await self._events.get()

    async def put(self, event: Event) -> None:
        """Add an event; waits while the client is slow."""
        if not self.closed:
            await self._events.put(event)

    def close(self) -> None:
        """Drop all further events: nothing reads them, and a full queue must not hold up the end of the sessions."""
        self.closed = True

    def start(self, prompt_tokens: int) -> None:
        """Record that the sessions are about to open."""
        self.meter.start(prompt_tokens)
        self.progress = ReadingPrompt(prompt_tokens)

    def queued(self, choice: int, position: QueuePosition) -> None:
        """Record a choice's place in the queue; the progress is that of the choice that is served next."""
        self.meter.record_position(choice, position)
        ahead = self.meter.ahead
        self.progress = Queued(ahead) if ahead else ReadingPrompt(self.meter.prompt_tokens)
