"""Whether a chat gets the same text alone and among others: the default model on a node, over its API."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import chain
from typing import Any

import httpx

from models.catalogue import DEFAULT_MODEL
from tests.bench.figures import Figure
from tests.bench.peers.chat import SUBJECTS
from tests.bench.texts import prose
from tests.support.nodes import nodes

TOKENS = 32
TOGETHER, MIXED = 8, 10
TIMEOUT_S = 300.0
SAMPLINGS: tuple[dict[str, float], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.8, "seed": 5},
    {"temperature": 1.0, "top_p": 0.9, "top_k": 40, "seed": 11},
)


def measure() -> list[Figure]:
    """Ask each question alone, eight at a time and ten at a time in another order, invariant and fast."""
    equal, asked = _equal("invariant")
    fast, _ = _equal("fast")
    note = f"{equal} of {asked} answers among 8 and 10 are those given alone, and {fast} with `fast`"
    return [Figure("seed_equal", equal / asked, "share", "1", baseline=fast / asked, note=note)]


def _equal(precision: str) -> tuple[int, int]:
    """Return how many answers among others are the ones given alone, and how many there were."""
    arguments = ["--engine", "onnx", "--threads", "1", "--precision", precision]
    with nodes("same", arguments=arguments) as (node,):
        return asyncio.run(_compare(node.api))


async def _compare(api: str) -> tuple[int, int]:
    asked = [{"prompt": prompt, **sampling} for prompt in _prompts() for sampling in SAMPLINGS]
    mixed = [*asked[::2], *asked[1::2]]  # other neighbours, and a prefill amid the decode steps of others
    async with httpx.AsyncClient(base_url=api, timeout=TIMEOUT_S) as client:
        alone = await _answers(client, asked, 1)
        together = await _answers(client, asked, TOGETHER)
        others = await _answers(client, mixed, MIXED)
    pairs = chain(zip(asked, together, strict=True), zip(mixed, others, strict=True))
    return sum(alone[asked.index(question)] == answer for question, answer in pairs), 2 * len(asked)


async def _answers(client: httpx.AsyncClient, questions: Sequence[dict[str, Any]], at_once: int) -> list[str]:
    answers: list[str] = []
    for at in range(0, len(questions), at_once):
        answers += await asyncio.gather(*(_answer(client, question) for question in questions[at : at + at_once]))
    return answers


async def _answer(client: httpx.AsyncClient, question: dict[str, Any]) -> str:
    messages = [{"role": "user", "content": question["prompt"]}]
    body = {**question, "model": DEFAULT_MODEL, "messages": messages, "max_tokens": TOKENS}
    del body["prompt"]
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def _prompts() -> list[str]:
    """Return short questions and, of each second one, a long one: with a paragraph of this project's prose."""
    text = " ".join(path.read_text() for path in prose()).split()
    short = [f"Tell me a short story about {subject}." for subject in SUBJECTS[:15]]
    return [
        f"{question} Begin where this ends: {' '.join(text[80 * at : 80 * at + 8 * at])}" if at % 2 else question
        for at, question in enumerate(short)
    ]
