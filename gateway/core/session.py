"""One session as its owner sees it: its opening, and in order what comes from the ring. Frames and text are unknown."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import NamedTuple

from cluster.failures import FailureCode
from cluster.openings import Opening
from cluster.placement import Instance
from gateway.core.session_check import CHECK_EVERY_S, Round, Silence
from gateway.core.token_log import TokenGap, TokenLog

# Backstops: that something was lost is noticed by `gateway.core.session_check` within seconds.
QUEUE_POSITION_TIMEOUT_S = 60.0  # they come every 10 s; a stage that computes a prompt is slower
FIRST_TOKEN_TIMEOUT_S = 300.0  # from admission on: a long prompt on a slow machine
NEXT_TOKEN_TIMEOUT_S = 60.0


class SessionFailed(Exception):
    """A generation cannot continue; `code` is for programs, the message one sentence for people.

    `retry_after_s` says when to try again; 0 is no advice.
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
    """A session's place in the first stage's queue, and how many prompt tokens need not be computed.

    `ahead` counts from 1, as one that runs is before the first that waits. At 0 the session is admitted and `cached`
    final.
    """

    ahead: int
    cached: int


NO_POSITION = QueuePosition(-1, 0)  # none has come yet


class Session:
    """One generation on an instance, from its opening to its close frame."""

    def __init__(self, instance: Instance, opening: Opening) -> None:
        self.id = secrets.randbits(64)
        self.instance = instance
        self.opening = opening
        self._log = TokenLog()
        self._position = NO_POSITION
        self._arrivals: asyncio.Queue[Token | QueuePosition | SessionFailed] = asyncio.Queue()
        self._waits = False  # whether something still has to come
        self.failed = asyncio.Event()
        self.failure: SessionFailed | None = None
        self.silence = Silence(time.monotonic())

    @property
    def name(self) -> str:
        """The id as observers see it."""
        return f"{self.id:016x}"

    def opened(self) -> None:
        """Note that the first stage was sent the opening: from now on something has to come."""
        self.silence.heard(time.monotonic())
        self._waits = True

    def is_silent(self, now: float, every_s: float = CHECK_EVERY_S) -> bool:
        """Return whether to ask the stages for the session: nothing came for `every_s` though something has to."""
        return self._waits and self.silence.is_due(now, every_s)

    def judge(self, answers: Round, asked_at: float) -> None:
        """Fail if the stages' answers, with those before, show that nothing more can come."""
        next_position = self.opening.first_position + len(self._log.tokens)
        if self._waits and (verdict := self.silence.judge(answers, asked_at, next_position)):
            self.fail(*verdict.value)

    async def next(self) -> Token | QueuePosition:
        """Wait for what comes next: queue positions, only the latest one, then tokens, each once and in order.

        Raises SessionFailed if the session failed, or if nothing comes in time.
        """
        timeout_s = self._timeout_s()
        try:
            async with asyncio.timeout(timeout_s):
                arrival = await self._arrivals.get()
        except TimeoutError:
            raise SessionFailed(FailureCode.TIMEOUT, f"the model sent nothing for {timeout_s:g} s; try again") from None
        if isinstance(arrival, SessionFailed):
            raise arrival
        return self._position if isinstance(arrival, QueuePosition) else arrival

    def receive_tokens(self, position: int, tokens: Sequence[int], *, finished: bool) -> None:
        """Accept the tokens for the positions from `position` on; with `finished` the last of them ends the session.

        At most `max_tokens` of them are passed on, which bounds the queue.
        """
        self.silence.heard(time.monotonic())
        self._waits = self._waits and not finished
        for at, token in enumerate(tokens):
            try:
                fresh = self._log.accept(position - self.opening.first_position + at, token)
            except TokenGap:
                self.fail(FailureCode.TOKEN_LOST, "a token was lost between the machines; try again")
                return
            if fresh and len(self._log.tokens) <= self.opening.max_tokens:
                self._arrivals.put_nowait(Token(token, finished and at == len(tokens) - 1))

    def receive_queue_position(self, position: QueuePosition) -> bool:
        """Accept a queue position; at most one of them waits to be read.

        Returns False after the admission: positions come from the first stage and the admission from the last, so an
        old position may be late.
        """
        if self._log.tokens or self._position.ahead == 0:
            return False
        self.silence.heard(time.monotonic())
        self._position = position
        if self._arrivals.empty():
            self._arrivals.put_nowait(position)
        return True

    def fail(self, code: FailureCode, message: str, retry_after_s: int = 0) -> None:
        """End the session: `next` raises this after the tokens that came before."""
        self._waits = False
        self.failure = SessionFailed(code, message, retry_after_s)
        self.failed.set()
        self._arrivals.put_nowait(self.failure)

    def _timeout_s(self) -> float:
        if self._log.tokens:
            return NEXT_TOKEN_TIMEOUT_S
        return QUEUE_POSITION_TIMEOUT_S if self._position.ahead > 0 else FIRST_TOKEN_TIMEOUT_S
