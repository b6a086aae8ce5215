"""Counts the tokens of one generation and takes its times."""

from __future__ import annotations

import time

from gateway.core.events import Timings, Usage
from gateway.core.session import QueuePosition


class GenerationMeter:
    """Usage and timings of a generation with `choices` sessions. Times are monotonic seconds."""

    def __init__(self, choices: int) -> None:
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._choices = choices
        self._positions: dict[int, QueuePosition] = {}  # by choice, of those that received one
        self._opened = 0.0
        self._admitted = 0.0
        self._first_token = 0.0
        self._last_token = 0.0

    @property
    def ahead(self) -> int:
        """The fewest generations ahead of a choice that waits; 0 if none waits."""
        return min((position.ahead for position in self._positions.values() if position.ahead), default=0)

    def start(self, prompt_tokens: int) -> None:
        """Begin to count: the sessions are about to open. A second call, on another instance, forgets the queue."""
        self.prompt_tokens = prompt_tokens
        self._opened = self._opened or time.monotonic()
        self._admitted = 0.0
        self._positions.clear()

    def record_position(self, choice: int, position: QueuePosition) -> None:
        """Record where the session of a choice stands in the queue; a position with none ahead is its admission."""
        self._positions[choice] = position
        if not position.ahead:
            self._admitted = self._admitted or time.monotonic()

    def record_token(self) -> None:
        """Record a token of any choice."""
        self._last_token = time.monotonic()
        self._first_token = self._first_token or self._last_token
        self.completion_tokens += 1

    def usage(self) -> Usage:
        """Return the counts.

        Cached are the prompt tokens that every choice found in the prefix cache: a choice that finds the prompt of
        the choice before it saves nothing that a client should see.
        """
        found = [position.cached for position in self._positions.values()]
        cached = min(found) if len(found) == self._choices else 0
        return Usage(self.prompt_tokens, cached, self.completion_tokens)

    def timings(self) -> Timings:
        """Return the times once every choice has had a token or more."""
        admitted = self._admitted or self._opened
        return Timings(
            queued_s=admitted - self._opened,
            first_token_s=self._first_token - admitted,
            decode_s=self._last_token - self._first_token,
        )
