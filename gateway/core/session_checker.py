"""Asks the stages of silent sessions for them on the bus, and fails those that cannot go on.

What the answers mean is decided in `gateway.core.session_check`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence

from bus.client import BusClient, RequestError
from bus.messages import MAX_CHECKED, SessionCheck, SessionStates
from cluster.failures import FailureCode
from cluster.placement import Instance
from gateway.core.data_plane import DataPlane
from gateway.core.session import Session
from gateway.core.session_check import Answer, Pace, Round, StageGone, StageReply

LOOK_EVERY_S = 0.25  # for silent sessions
REPLY_TIMEOUT_S = 1.0
LATE_S = LOOK_EVERY_S + REPLY_TIMEOUT_S + 0.5  # between two looks: this process was frozen
_GONE = frozenset({FailureCode.UNDELIVERABLE, FailureCode.CONFLICT})
"""What a request to a stage fails with if its process has ended, is new, or is on a node that is not linked."""

Replies = tuple[SessionStates | StageGone | None, ...]
"""What the stages of an instance replied, in the order of the ring; None if one did not in time."""


class SessionChecker:
    """Checks the sessions of a data plane while nothing comes for them. A stream that flows costs no message."""

    def __init__(self, bus: BusClient, plane: DataPlane) -> None:
        self._bus = bus
        self._plane = plane
        self._pace = Pace(LATE_S)

    async def check(self) -> None:
        """Ask for the sessions that are due, in one message to each stage, and fail those that are lost."""
        now = time.monotonic()
        every_s = self._pace.every_s(now)
        due: dict[str, list[Session]] = {}
        for session in self._plane.sessions:
            if session.is_silent(now, every_s):
                due.setdefault(session.instance.instance_id, []).append(session)
        await asyncio.gather(*(self._check(sessions[:MAX_CHECKED], now) for sessions in due.values()))

    async def _check(self, sessions: Sequence[Session], now: float) -> None:
        """Ask for sessions of one instance."""
        for session in sessions:
            session.silence.ask(now)
        replies = await ask_stages(self._bus, sessions[0].instance, [session.name for session in sessions])
        for session in sessions:
            session.judge(_answers(replies, session.name), now)


async def ask_stages(bus: BusClient, instance: Instance, names: Iterable[str] = ()) -> Replies:
    """Ask all stages of an instance how far these sessions are; without any, whether they live."""
    work = SessionCheck(tuple(names))
    return tuple(await asyncio.gather(*(_ask(bus, stage.actor, work) for stage in instance.stages)))


async def _ask(bus: BusClient, actor: str, work: SessionCheck) -> SessionStates | StageGone | None:
    try:
        return await bus.request(actor, work, SessionStates, REPLY_TIMEOUT_S)
    except RequestError as error:
        return StageGone() if error.code in _GONE else None


def _answers(replies: Replies, name: str) -> Round:
    """Return what the stages replied about one session."""

    def answer(reply: SessionStates | StageGone | None) -> Answer:
        if not isinstance(reply, SessionStates):
            return reply
        return StageReply(reply.turns, next((state for state in reply.sessions if state.session == name), None))

    return tuple(answer(reply) for reply in replies)
