"""`POST /v1/chat/completions`: a request's events written as one JSON object or as a stream of chunks."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from common.version import running_version
from gateway.core.events import Answer, Ended, Event, Failed, Finished, Piece
from gateway.core.generation import Chat
from gateway.http.responses import Bodies, BodyLimits, EventStream, Json, while_connected
from gateway.openai import chunks
from gateway.openai.requests import MAX_BODY_BYTES, ChatRequest, parse

LIFE_EVERY_S = 1.0  # a waiting stream shows a sign of life that often
BODY = BodyLimits(MAX_BODY_BYTES)


class ChatCompletions:
    """The ASGI endpoint. A client that leaves, at whatever moment, ends its sessions."""

    def __init__(self, chat: Chat, body: BodyLimits = BODY) -> None:
        self._chat = chat
        self._bodies = Bodies(body)
        self._version = running_version()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises ApiError while no byte of the response is out."""
        request = parse(await self._bodies.read(Request(scope, receive)))
        identity = chunks.Identity(
            f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), request.model, f"exobus-{self._version}"
        )
        if request.stream:
            await while_connected(receive, self._stream(_Stream(request, identity, EventStream(send))))
        else:
            await while_connected(receive, self._whole(request, identity, scope, receive, send))

    async def _whole(
        self, request: ChatRequest, identity: chunks.Identity, scope: Scope, receive: Receive, send: Send
    ) -> None:
        texts, reasons = [""] * request.choices, [""] * request.choices
        async with self._answering(request) as answer:
            while True:
                match await answer.events.get():
                    case Piece(choice, text):
                        texts[choice] += text
                    case Finished(choice, reason):
                        reasons[choice] = reason
                    case Failed(error):
                        raise error
                    case Ended(timings):
                        break
        choices = list(zip(texts, reasons, strict=True))
        await Json(chunks.completion(identity, choices, timings))(scope, receive, send)

    async def _stream(self, stream: _Stream) -> None:
        async with self._answering(stream.request) as answer:
            while True:
                event = await _next_event(answer)
                if event is None:
                    await stream.show_life(answer.waits_for)
                elif await stream.write(event):
                    return

    @asynccontextmanager
    async def _answering(self, request: ChatRequest) -> AsyncIterator[Answer]:
        """An answer that is being worked out while the block runs."""
        answer = Answer(request)
        working = asyncio.create_task(self._chat.run(answer))
        try:
            yield answer
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


async def _next_event(answer: Answer) -> Event | None:
    """The next event, or None where none came for a while."""
    try:
        async with asyncio.timeout(LIFE_EVERY_S):
            return await answer.events.get()
    except TimeoutError:
        return None


class _Stream:
    """Writes events as chunks. An error before the first byte is raised, later ones are written."""

    def __init__(self, request: ChatRequest, identity: chunks.Identity, out: EventStream) -> None:
        self.request = request
        self._identity = identity
        self._out = out
        self._usage = request.include_usage
        self._introduced: set[int] = set()

    async def show_life(self, text: str) -> None:
        """A comment, which clients skip."""
        await self._out.send(chunks.comment(text))

    async def write(self, event: Event) -> bool:
        """Write an event; True when it was the last."""
        match event:
            case Piece(choice, text):
                data = chunks.text_chunk(self._identity, choice, text, usage=self._usage)
                await self._out.send(self._role(choice) + chunks.event(data))
            case Finished(choice, reason):
                data = chunks.finish_chunk(self._identity, choice, reason, usage=self._usage)
                await self._out.send(self._role(choice) + chunks.event(data))
            case Ended(timings):
                last = chunks.event(chunks.usage_chunk(self._identity, timings)) if self._usage else b""
                await self._out.send(last + chunks.DONE, more=False)
            case Failed(error):
                if not self._out.begun:
                    raise error
                await self._out.send(chunks.error_event(error), more=False)
        return isinstance(event, Ended | Failed)

    def _role(self, choice: int) -> bytes:
        """The role chunk, before a choice's first other one."""
        if choice in self._introduced:
            return b""
        self._introduced.add(choice)
        return chunks.event(chunks.role_chunk(self._identity, choice, usage=self._usage))
