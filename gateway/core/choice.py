"""One choice of an answer: a session's tokens in, pieces of text out, told to observers on the way."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bus.client import BusClient
from bus.messages import SessionFinished, SessionToken
from cluster.failures import FailureCode
from cluster.openings import Opening
from cluster.placement import Instance
from gateway.core.data_plane import DataPlane
from gateway.core.errors import SERVER, ApiError, queue_full, too_large, unavailable
from gateway.core.events import Answer, Finished, Piece
from gateway.core.session import QueuePosition, Session, SessionFailed, Token
from gateway.core.stops import StopFilter
from gateway.core.text_models import TextModel


class ChoiceText:
    """The text of one choice as its tokens come. `reason` is empty until the text is over. Pure."""

    def __init__(self, model: TextModel, eos: frozenset[int], stops: tuple[str, ...]) -> None:
        self.reason = ""
        self._eos = eos
        self._decoder = model.tokenizer.stream()
        self._stops = StopFilter(stops)

    def push(self, token: int, *, finished: bool) -> str:
        """The text that one more token lets out; `finished` tells that no further token comes."""
        ended = token in self._eos
        piece = self._stops.push("" if ended else self._decoder.push(token))
        if finished or ended:
            piece += self._stops.push(self._decoder.flush()) + self._stops.flush()
        if self._stops.stopped or ended:
            self.reason = "stop"
        elif finished:
            self.reason = "length"
        return piece


@dataclass(slots=True)
class ChoiceRun:
    """Choice number `index` of an answer, on its way through a session."""

    index: int
    answer: Answer
    text: ChoiceText
    tokens: int = 0

    async def run(self, plane: DataPlane, bus: BusClient, instance: Instance, opening: Opening) -> None:
        """From the session's opening to its close. ApiError where the ring fails."""
        try:
            async with plane.session(instance, opening) as session:
                await self._observed(bus, session)
        except SessionFailed as error:
            raise _failure(error, begun=self.answer.completion_tokens > 0) from None
        await self.answer.events.put(Finished(self.index, self.text.reason))

    async def _observed(self, bus: BusClient, session: Session) -> None:
        begun, reason = time.monotonic(), "cancelled"
        try:
            await self._generate(bus, session)
            reason = self.text.reason
        except SessionFailed:
            reason = "failed"
            raise
        finally:
            seconds = round(time.monotonic() - begun, 6)
            prompt_tokens = session.opening.first_position
            await bus.publish(SessionFinished(session.name, reason, prompt_tokens, self.tokens, seconds))

    async def _generate(self, bus: BusClient, session: Session) -> None:
        while not self.text.reason:
            match await session.next():
                case QueuePosition() as place:
                    self.answer.place(self.index, place)
                case Token() as token:
                    await self._take(bus, session, token)

    async def _take(self, bus: BusClient, session: Session, token: Token) -> None:
        self.answer.count_token()
        piece = self.text.push(token.id, finished=token.finished)
        if piece:
            await self.answer.events.put(Piece(self.index, piece))
        await bus.publish(SessionToken(session.name, self.tokens, token.id, piece))
        self.tokens += 1


def _failure(error: SessionFailed, *, begun: bool) -> ApiError:
    """Before the first token the client may simply ask again; after it, it has to know that the text is cut."""
    if error.code == FailureCode.QUEUE_FULL:
        return queue_full(error.message, error.retry_after_s)
    if error.code == FailureCode.TOO_LARGE:
        return too_large(error.message, "max_tokens")
    if begun:
        return ApiError(500, error.message, kind=SERVER, code=error.code, headers={"x-should-retry": "false"})
    return unavailable(error.code, error.message, error.retry_after_s)
