"""`POST /v1/chat/completions`: a generation's events written as one JSON object or as a stream of chunks."""

from __future__ import annotations

import asyncio
import secrets
import time

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from common.version import running_version
from gateway.core.events import ChoiceFinished, Event, GenerationFailed, GenerationFinished, TextDelta
from gateway.core.generation import Generation
from gateway.core.generator import Generator
from gateway.http.bodies import BodyLimits, RequestBodies
from gateway.http.event_stream import EventStream, while_connected
from gateway.http.json_response import JsonResponse
from gateway.openai import chunks
from gateway.openai.errors import error_body
from gateway.openai.progress import comment
from gateway.openai.requests import MAX_BODY_BYTES, ChatRequest, parse

COMMENT_EVERY_S = 1.0  # while a stream waits


class ChatCompletions:
    """The ASGI endpoint. A client that disconnects, at any moment, ends its sessions."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._bodies = RequestBodies(BodyLimits(MAX_BODY_BYTES))
        self._version = running_version()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises GatewayError while no byte of the response has been sent."""
        async with self._bodies.read(Request(scope, receive)) as body:
            request = parse(bytes(body))
            body.clear()
            await self._serve(request, scope, receive, send)

    async def _serve(self, request: ChatRequest, scope: Scope, receive: Receive, send: Send) -> None:
        identity = chunks.Identity(
            f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), request.model, f"exobus-{self._version}"
        )
        if request.stream:
            writer = _ChunkWriter(identity, EventStream(send), usage=request.include_usage)
            await while_connected(receive, self._stream(request, writer))
        else:
            await while_connected(receive, self._complete(request, identity, scope, receive, send))

    async def _complete(
        self, request: ChatRequest, identity: chunks.Identity, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Respond with the whole completion."""
        texts, reasons = [""] * request.choices, [""] * request.choices
        async with self._generator.running(request.generation()) as generation:
            while True:
                match await generation.next_event():
                    case TextDelta(choice, text):
                        texts[choice] += text
                    case ChoiceFinished(choice, reason):
                        reasons[choice] = reason
                    case GenerationFailed(error):
                        raise error
                    case GenerationFinished() as end:
                        break
        choices = list(zip(texts, reasons, strict=True))
        await JsonResponse(chunks.completion(identity, choices, end))(scope, receive, send)

    async def _stream(self, request: ChatRequest, writer: _ChunkWriter) -> None:
        """Respond with a chunk for each event, and a comment for each second without one."""
        async with self._generator.running(request.generation()) as generation:
            while True:
                event = await _next_event(generation)
                if event is None:
                    await writer.out.send(comment(generation.progress))
                elif await writer.write(event):
                    return


async def _next_event(generation: Generation) -> Event | None:
    try:
        async with asyncio.timeout(COMMENT_EVERY_S):
            return await generation.next_event()
    except TimeoutError:
        return None


class _ChunkWriter:
    """Writes events as chunks. An error before the first byte is raised, later ones are written."""

    def __init__(self, identity: chunks.Identity, out: EventStream, *, usage: bool) -> None:
        self.out = out
        self._identity = identity
        self._usage = usage
        self._introduced: set[int] = set()

    async def write(self, event: Event) -> bool:
        """Write an event; returns whether it was the last."""
        match event:
            case TextDelta(choice, text):
                chunk = chunks.text_chunk(self._identity, choice, text, usage=self._usage)
                await self.out.send(self._role_chunk(choice) + chunks.event(chunk))
            case ChoiceFinished(choice, reason):
                chunk = chunks.finish_chunk(self._identity, choice, reason, usage=self._usage)
                await self.out.send(self._role_chunk(choice) + chunks.event(chunk))
            case GenerationFinished():
                last = chunks.event(chunks.usage_chunk(self._identity, event)) if self._usage else b""
                await self.out.send(last + chunks.DONE, more=False)
            case GenerationFailed(error):
                if not self.out.begun:
                    raise error
                # Nothing follows, and no choice gets a finish reason, so clients see that the text is cut.
                await self.out.send(chunks.event(error_body(error)), more=False)
        return isinstance(event, GenerationFinished | GenerationFailed)

    def _role_chunk(self, choice: int) -> bytes:
        """Return the chunk that precedes all others of a choice; empty if it was sent."""
        if choice in self._introduced:
            return b""
        self._introduced.add(choice)
        return chunks.event(chunks.role_chunk(self._identity, choice, usage=self._usage))
