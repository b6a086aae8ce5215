"""Renders chat templates in child processes, so that a template cannot take more than its share.

There are at most two children, and a template uses one at a time: a model with a template that never ends delays only
its own requests. Runs on one asyncio loop; knows no models and no HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from models.errors import TemplateError, TemplateUnavailable
from models.templates.chat_template import ChatTemplate
from models.templates.child import Rendered, RenderFailed, RenderRequest
from models.templates.process import TemplateProcess

CHILDREN = 2
RENDER_TIMEOUT_S = 2.0
MAX_PENDING = 128  # renders that wait or run
WAIT_TIMEOUT_S = 30.0
ATTEMPTS = 2  # a child may have died for a reason that has nothing to do with the template

_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], Rendered | RenderFailed] = msgspec.msgpack.Decoder(Rendered | RenderFailed).decode


class TemplateRenderer:
    """Renders conversations, each within `timeout_s` seconds. Its children run until it is closed."""

    def __init__(self, timeout_s: float = RENDER_TIMEOUT_S) -> None:
        self._children = [TemplateProcess(timeout_s) for _ in range(CHILDREN)]
        self._idle: asyncio.LifoQueue[TemplateProcess] = asyncio.LifoQueue()
        for child in reversed(self._children):
            self._idle.put_nowait(child)
        self._turns: WeakValueDictionary[ChatTemplate, asyncio.Lock] = WeakValueDictionary()
        self._pending = 0

    @property
    def pids(self) -> list[int]:
        """The ids of the processes that are ready now."""
        return [child.pid for child in self._children if child.pid]

    def start(self) -> None:
        """Start the first child in the background, before a request needs it."""
        self._children[0].start()

    async def close(self) -> None:
        """End every child. Renders in progress fail."""
        async with asyncio.TaskGroup() as group:
            for child in self._children:
                group.create_task(child.close())

    async def render(
        self,
        template: ChatTemplate,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        /,
        **variables: Any,
    ) -> str:
        """Return what `template.render` returns.

        Raises TemplateError if that does, and if the template takes too long or too much memory. Raises
        TemplateUnavailable if too many requests wait, or if no child can be started.
        """
        tokens = (template.bos_token, template.eos_token)
        request = RenderRequest(
            template.source, *tokens, [dict(message) for message in messages], add_generation_prompt, variables
        )
        if self._pending >= MAX_PENDING:
            raise TemplateUnavailable(f"{MAX_PENDING} requests wait for their chat template; try again soon")
        self._pending += 1
        try:
            return await self._in_turn(template, request)
        finally:
            self._pending -= 1

    async def _in_turn(self, template: ChatTemplate, request: RenderRequest) -> str:
        """Wait until no other render of this template runs and a child is idle; then render without a limit of wait."""
        turn = self._turns.setdefault(template, asyncio.Lock())
        try:
            async with asyncio.timeout(WAIT_TIMEOUT_S) as waiting, turn:
                child = await self._idle.get()
                waiting.reschedule(None)
                try:
                    return await _rendered(child, _encode(request))
                finally:
                    self._idle.put_nowait(child)
        except TimeoutError:
            sentence = f"other chat templates were busy for {WAIT_TIMEOUT_S:g} s; try again soon"
            raise TemplateUnavailable(sentence) from None


async def _rendered(child: TemplateProcess, message: bytes) -> str:
    """Send a request to a child, and again to its successor if it dies. Raises TemplateError."""
    for _ in range(ATTEMPTS):
        reply = await child.request(message)
        if reply is not None:
            return _text(child, reply)
    raise TemplateError("the model's chat template broke the process that renders it; use another model")


def _text(child: TemplateProcess, reply: bytes) -> str:
    """Decode a reply. Raises TemplateError, and replaces the child if it is not a reply of our program."""
    try:
        result = _decode(reply)
    except (msgspec.DecodeError, UnicodeDecodeError):
        child.replace()
        raise TemplateError(
            "the model's chat template took over the process that renders it; delete this model"
        ) from None
    if isinstance(result, RenderFailed):
        raise TemplateError(result.sentence)
    return result.text
