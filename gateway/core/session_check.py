"""Whether a silent session still runs, from what its stages reply: values and decisions, no sockets.

A frame can be lost with the connection that it was on, and it is not sent again. So a gateway that has heard
nothing of a session for a while asks all stages of its instance for it, once a round, and compares the rounds: one
reply shows a moment, in which any frame may be on its way, and only what stays as it is through several rounds is a
verdict. A stage that does not reply is none: a frozen engine is ended by its node, and its instance is then down.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

from bus.messages import SessionState
from cluster.failures import FailureCode

CHECK_EVERY_S = 2.0  # of silence
THAWED_EVERY_S = 1.0  # the same after this process was frozen: its connections have broken, most likely
THAW_S = 5.0  # how long that counts
ROUNDS_OF_STALL = 3  # a frame may travel for long on a slow link, behind others; two rounds are enough for the rest


class StageReply(NamedTuple):
    """What a stage replied: its turns of receiving, and how far the session is there, None if it is not known."""

    turns: int
    state: SessionState | None


class StageGone(NamedTuple):
    """The request to a stage came back: its process has ended, or its node is not linked."""


Answer = StageReply | StageGone | None
"""None if a stage did not reply in time."""

Round = tuple[Answer, ...]
"""What the stages of a session answered, in the order of the ring."""


class Verdict(Enum):
    """Why a session cannot go on, as the code and the sentence with which it fails."""

    GONE = FailureCode.NODE_LOST, "a stage of this generation is gone; try again"
    LOST = FailureCode.SESSION_LOST, "this generation was lost on its way between the machines; try again"
    STALLED = FailureCode.SESSION_LOST, "this generation stands still, for a part of it was lost on its way; try again"
    TOKENS_LOST = FailureCode.TOKEN_LOST, "a token was lost between the machines; try again"


class Silence:
    """How long nothing has come for one session, and what its stages answered meanwhile. Times are monotonic seconds.

    It begins with the opening of the session.
    """

    def __init__(self, now: float) -> None:
        self._since = now
        self._asked_at = now
        self._rounds: deque[Round] = deque(maxlen=ROUNDS_OF_STALL)

    def heard(self, now: float) -> None:
        """Begin anew, because something came."""
        self._since = self._asked_at = now
        self._rounds.clear()

    def is_due(self, now: float, every_s: float = CHECK_EVERY_S) -> bool:
        """Return whether to ask the stages: after `every_s` of silence, and every `every_s` from then on."""
        return now - self._asked_at >= every_s

    def ask(self, now: float) -> None:
        """Note that a round begins."""
        self._asked_at = now

    def judge(self, answers: Round, asked_at: float, next_position: int) -> Verdict | None:
        """Add the round that began at `asked_at`, and return the verdict of all so far.

        `next_position` is that of the next token to come. A round during which something came does not count.
        """
        if asked_at < self._since:
            return None
        self._rounds.append(answers)
        return verdict(tuple(self._rounds), next_position)


class Pace:
    """How often to ask: more often after a freeze, which shows as a late look. Times are monotonic seconds."""

    def __init__(self, late_s: float) -> None:
        """Consider the process frozen if there was no look for `late_s`."""
        self._late_s = late_s
        self._looked_at = math.inf
        self._thawed_until = -math.inf

    def every_s(self, now: float) -> float:
        """Note a look, and return after how much silence to ask."""
        if now - self._looked_at > self._late_s:
            self._thawed_until = now + THAW_S
        self._looked_at = now
        return THAWED_EVERY_S if now < self._thawed_until else CHECK_EVERY_S


def verdict(rounds: Sequence[Round], next_position: int) -> Verdict | None:
    """Return what is wrong with a session of which nothing came during these rounds, oldest first; None if it may wait.

    `next_position` is the position of the next token that its gateway waits for.
    """
    if len(rounds) < 2:
        return None
    before, now = rounds[-2:]
    if any(isinstance(a, StageGone) and isinstance(b, StageGone) for a, b in zip(before, now, strict=True)):
        return Verdict.GONE
    if _sampled(before) > next_position and _sampled(now) > next_position:
        return Verdict.TOKENS_LOST
    if _is_lost(before, now):
        return Verdict.LOST
    if len(rounds) >= ROUNDS_OF_STALL and all(_stands(a, b) for a, b in pairwise(rounds[-ROUNDS_OF_STALL:])):
        return Verdict.STALLED
    return None


def _sampled(answers: Round) -> int:
    """Return the position after the last token that the last stage sampled; 0 if it does not say."""
    last = answers[-1]
    return last.state.sampled if isinstance(last, StageReply) and last.state else 0


def _is_lost(before: Round, now: Round) -> bool:
    """Return whether one stage lacked the session both times, and handled between them all frames that had come."""
    missing = _first_missing(before)
    return missing is not None and missing == _first_missing(now) and _has_turned(before[missing], now[missing])


def _first_missing(answers: Round) -> int | None:
    """Return the first stage that does not know the session, if all stages before it run it."""
    for index, answer in enumerate(answers):
        if not isinstance(answer, StageReply):
            return None
        if answer.state is None:
            return index
        if answer.state.waiting:
            return None
    return None


def _stands(before: Round, now: Round) -> bool:
    """Return whether every stage has the session, has nothing to do for it, and handled all frames without change."""
    return all(
        _is_idle(a) and _is_idle(b) and _has_turned(a, b) and _state(a) == _state(b)
        for a, b in zip(before, now, strict=True)
    )


def _is_idle(answer: Answer) -> bool:
    state = _state(answer)
    return state is not None and not state.waiting and not state.active


def _state(answer: Answer) -> SessionState | None:
    return answer.state if isinstance(answer, StageReply) else None


def _has_turned(before: Answer, now: Answer) -> bool:
    """Return whether the stage took in all frames between two replies: one that computes for long has not."""
    return isinstance(before, StageReply) and isinstance(now, StageReply) and now.turns > before.turns
