"""One choice of a generation: a session's tokens in, text deltas out, with facts for observers on the way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bus.client import BusClient
from bus.messages import SessionFinished, SessionToken
from cluster.openings import Opening
from cluster.placement import Instance
from gateway.core.data_plane import DataPlane
from gateway.core.events import ChoiceFinished, FinishReason, TextDelta
from gateway.core.generation import Generation
from gateway.core.session import QueuePosition, Session, SessionFailed, Token
from gateway.core.stops import StopFilter
from models.tokenizers.tokenizer import Tokenizer


class ChoiceText:
    """Turns the tokens of one choice into text. `reason` is None until the text is complete."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self.reason: FinishReason | None = None
        self._eos = tokenizer.eos_token_ids
        self._decoder = tokenizer.stream()
        self._stops = StopFilter(stops)

    def push(self, token: int, *, last: bool) -> str:
        """Return the text that can be shown after one more token; `last` says that no token follows."""
        ended = token in self._eos
        text = self._stops.push("" if ended else self._decoder.push(token))
        if last or ended:
            text += self._stops.push(self._decoder.flush()) + self._stops.flush()
        if self._stops.stopped or ended:
            self.reason = FinishReason.STOP
        elif last:
            self.reason = FinishReason.LENGTH
        return text


@dataclass(slots=True)
class ChoiceRun:
    """Choice number `index` of a generation, from the opening of its session to its end."""

    index: int
    generation: Generation
    text: ChoiceText
    tokens: int = 0

    async def run(self, plane: DataPlane, bus: BusClient, instance: Instance, opening: Opening) -> None:
        """Generate the choice. Raises SessionFailed if the ring fails."""
        async with plane.session(instance, opening) as session:
            begun, reason = time.monotonic(), "cancelled"
            try:
                reason = await self._generate(bus, session)
            except SessionFailed:
                reason = "failed"
                raise
            finally:
                seconds = round(time.monotonic() - begun, 6)
                prompt_tokens = self.generation.meter.prompt_tokens
                await bus.publish(SessionFinished(session.name, reason, prompt_tokens, self.tokens, seconds))
        await self.generation.put(ChoiceFinished(self.index, FinishReason(reason)))

    async def _generate(self, bus: BusClient, session: Session) -> FinishReason:
        while self.text.reason is None:
            match await session.next():
                case QueuePosition() as position:
                    self.generation.queued(self.index, position)
                case Token() as token:
                    await self._take(bus, session, token)
        return self.text.reason

    async def _take(self, bus: BusClient, session: Session, token: Token) -> None:
        self.generation.meter.record_token()
        text = self.text.push(token.id, last=token.finished)
        if text:
            await self.generation.put(TextDelta(self.index, text))
        await bus.publish(SessionToken(session.name, self.tokens, token.id, text))  # encoded only for subscribers
        self.tokens += 1
