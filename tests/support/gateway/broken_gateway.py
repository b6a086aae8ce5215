"""A gateway that fails where a prompt requests it, and quotes the prompt, as a process of its own."""

from __future__ import annotations

import asyncio

from bus.process import run_actor
from gateway.core.prompt_limit import PromptLimit
from gateway.core.request import Prompt
from gateway.core.text_models import TextModel
from gateway.gateway_actor import GatewayActor
from gateway.openai import chat_completions as completions
from gateway.openai.requests import ChatRequest, parse

IN_THE_ROUTE = "fail in the route"
IN_THE_ANSWER = "fail in the answer"
IN_A_TASK = "fail in a task"
IN_A_CALLBACK = "fail in a callback"
PLACES = (IN_THE_ROUTE, IN_THE_ANSWER, IN_A_TASK, IN_A_CALLBACK)


def _fail(words: object) -> None:
    try:
        raise KeyError(words)
    except KeyError as error:
        raise ValueError(f"cannot make sense of {words!r}") from error


async def _fail_alone(words: object) -> None:
    _fail(words)


def _parse(body: bytes) -> ChatRequest:
    if IN_THE_ROUTE.encode() in body:
        _fail(body)
    if IN_A_TASK.encode() in body:
        asyncio.get_running_loop().create_task(_fail_alone(body))  # nothing awaits it
    if IN_A_CALLBACK.encode() in body:
        asyncio.get_running_loop().call_soon(_fail, body)
    return parse(body)


async def _tokens(self: TextModel, prompt: Prompt, limit: PromptLimit) -> tuple[int, ...]:
    if IN_THE_ANSWER in repr(prompt):
        _fail(prompt)
    return await _real_tokens(self, prompt, limit)


_real_tokens = TextModel.tokens

if __name__ == "__main__":
    completions.parse = _parse  # type: ignore[attr-defined]  # it is imported there
    TextModel.tokens = _tokens  # type: ignore[method-assign]
    run_actor(GatewayActor, GatewayActor.name)
