"""One session as its owner knows it: its opening, and in order what is heard of it. Knows no sockets and no text."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from bus.dataplane.frames import Flag, Frame, FrameError
from cluster.failures import FailureCode
from cluster.openings import Opening
from cluster.placement import Instance
from gateway.core.token_log import TokenGap, TokenLog

PLACE_WITHIN_S = 60.0  # a session in the queue hears its place every 10 s; a stage in the midst of a prompt is slower
FIRST_TOKEN_WITHIN_S = 300.0  # from admission on: a long prompt on a slow machine
NEXT_TOKEN_WITHIN_S = 60.0


class SessionFailed(Exception):
    """A generation cannot go on; `code` is for programs, the message one sentence for people.

    `retry_after_s` says when to ask again, 0 that nobody knows.
    """

    def __init__(self, code: FailureCode, message: str, retry_after_s: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


class Token(NamedTuple):
    """The next token of a session, and whether it is the last."""

    id: int
    finished: bool


class QueuePosition(NamedTuple):
    """A session's place in the first stage's queue, and how many prompt tokens it need not compute.

    `ahead` counts from 1, as one that runs is before the first that waits. At 0 the session is in and `cached` final.
    """

    ahead: int
    cached: int


NO_POSITION = QueuePosition(-1, 0)  # none was heard of yet


class Session:
    """One generation on an instance, from its opening to its close frame."""

    def __init__(self, instance: Instance, opening: Opening) -> None:
        self.id = secrets.randbits(64)
        self.instance = instance
        self.opening = opening
        self._log = TokenLog()
        self._place = NO_POSITION
        self._arrivals: asyncio.Queue[Token | QueuePosition | SessionFailed] = asyncio.Queue()

    @property
    def name(self) -> str:
        """The id as observers see it."""
        return f"{self.id:016x}"

    async def next(self) -> Token | QueuePosition:
        """What comes next: places, the latest one only, then tokens, each once and in order. Raises SessionFailed."""
        deadline_s = self._deadline_s()
        try:
            async with asyncio.timeout(deadline_s):
                arrival = await self._arrivals.get()
        except TimeoutError:
            raise SessionFailed(
                FailureCode.TIMEOUT, f"the model said nothing for {deadline_s:g} s; try again"
            ) from None
        if isinstance(arrival, SessionFailed):
            raise arrival
        return self._place if isinstance(arrival, QueuePosition) else arrival

    def hear_tokens(self, frame: Frame, tokens: Sequence[int]) -> None:
        """Tokens came in. There are never more of them than `max_tokens`, which bounds the queue."""
        last = len(tokens) - 1
        for at, token in enumerate(tokens):
            try:
                fresh = self._log.accept(frame.position - self.opening.prompt_tokens + at, token)
            except TokenGap:
                self.fail(FailureCode.TOKEN_LOST, "a token was lost between the machines; try again")
                return
            if fresh and len(self._log.tokens) <= self.opening.max_tokens:
                self._arrivals.put_nowait(Token(token, at == last and bool(frame.flags & Flag.FINISHED)))

    def hear_place(self, place: QueuePosition) -> None:
        """A place in the queue came in. At most one of them waits to be read.

        Raises FrameError after the admission: places come from the first stage and the admission from the last, so an
        old place may be late.
        """
        if self._log.tokens or self._place.ahead == 0:
            raise FrameError("late place")
        self._place = place
        if self._arrivals.empty():
            self._arrivals.put_nowait(place)

    def fail(self, code: FailureCode, message: str, retry_after_s: int = 0) -> None:
        """End the session from outside."""
        self._arrivals.put_nowait(SessionFailed(code, message, retry_after_s))

    def _deadline_s(self) -> float:
        if self._log.tokens:
            return NEXT_TOKEN_WITHIN_S
        return PLACE_WITHIN_S if self._place.ahead > 0 else FIRST_TOKEN_WITHIN_S
