"""Renders chat templates in child processes, so that a template takes what it was given and nothing else.

There are two children at most, and a template has one at a time: a model whose template works for ever delays only
its own requests. Lives on one asyncio loop; knows no models and no HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from models.chat_template import ChatTemplate
from models.errors import TemplateError, TemplateUnavailable
from models.template_child import Refused, Render, Rendered
from models.template_process import TemplateProcess

CHILDREN = 2
RENDER_WITHIN_S = 2.0
MAX_WAITING = 128  # renders that wait or run
WAIT_WITHIN_S = 30.0
ATTEMPTS = 2  # a child that died may have been killed by somebody else

_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], Rendered | Refused] = msgspec.msgpack.Decoder(Rendered | Refused).decode


class TemplateRenderer:
    """Renders one conversation after the other. `close` it: its children live on otherwise until this process ends."""

    def __init__(self, within_s: float = RENDER_WITHIN_S) -> None:
        """`within_s`: the most seconds of one render."""
        self._children = [TemplateProcess(within_s) for _ in range(CHILDREN)]
        self._idle: asyncio.LifoQueue[TemplateProcess] = asyncio.LifoQueue()
        for child in reversed(self._children):
            self._idle.put_nowait(child)
        self._turns: WeakValueDictionary[ChatTemplate, asyncio.Lock] = WeakValueDictionary()
        self._waiting = 0

    @property
    def pids(self) -> list[int]:
        """The processes that live now."""
        return [child.pid for child in self._children if child.pid]

    def begin(self) -> None:
        """Start the first child in the background, so that no request waits for it."""
        self._children[0].begin()

    async def close(self) -> None:
        """End every child; renders that run fail."""
        await asyncio.gather(*(child.close() for child in self._children))

    async def render(
        self,
        template: ChatTemplate,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """What `template.render` gives.

        TemplateError where that does, and where the template takes too long or too much memory; TemplateUnavailable
        where too many wait, or no child can be started.
        """
        tokens = (template.bos_token, template.eos_token)
        ask = Render(template.source, *tokens, [dict(m) for m in messages], add_generation_prompt, variables)
        if self._waiting >= MAX_WAITING:
            raise TemplateUnavailable(f"{MAX_WAITING} requests wait for their chat template; try again soon")
        self._waiting += 1
        try:
            return await self._in_turn(template, ask)
        finally:
            self._waiting -= 1

    async def _in_turn(self, template: ChatTemplate, ask: Render) -> str:
        turn = self._turns.setdefault(template, asyncio.Lock())
        try:
            async with asyncio.timeout(WAIT_WITHIN_S) as waiting, turn:
                child = await self._idle.get()
                waiting.reschedule(None)
                try:
                    return await _rendered(child, _encode(ask))
                finally:
                    self._idle.put_nowait(child)
        except TimeoutError:
            sentence = f"other chat templates were busy for {WAIT_WITHIN_S:g} s; try again soon"
            raise TemplateUnavailable(sentence) from None


async def _rendered(child: TemplateProcess, message: bytes) -> str:
    for _ in range(ATTEMPTS):
        answer = await child.ask(message)
        if answer is not None:
            return _text(child, answer)
    raise TemplateError("the model's chat template broke the process that renders it; use another model")


def _text(child: TemplateProcess, message: bytes) -> str:
    try:
        answer = _decode(message)
    except (msgspec.DecodeError, UnicodeDecodeError):
        child.replace()  # it is not what we started any more
        raise TemplateError(
            "the model's chat template took over the process that renders it; delete this model"
        ) from None
    if isinstance(answer, Refused):
        raise TemplateError(answer.sentence)
    return answer.text
