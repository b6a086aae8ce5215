"""Whether a chat gets the same text alone, among others and after a first turn: the default model, over the API."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import httpx

from models.catalogue import DEFAULT_MODEL
from tests.bench.figures import Figure
from tests.bench.machine import load_sentence
from tests.bench.ours import wait_for_all
from tests.bench.peers.chat import SUBJECTS
from tests.bench.texts import prose
from tests.support.nodes import NodeProcess, nodes

PROMPTS, FEW = 15, 3
TOKENS = 32
TOGETHER, MIXED = 8, 10
TIMEOUT_S = 900.0
SAMPLINGS: tuple[dict[str, float], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.8, "seed": 5},
    {"temperature": 1.0, "top_p": 0.9, "top_k": 40, "seed": 11},
)


@dataclass(frozen=True)
class Side:
    """Nodes with an engine. A slow engine is asked fewer `prompts`, in each sampling."""

    engine: str
    precision: str
    threads: int = 1
    stages: int = 1
    prompts: int = PROMPTS

    @property
    def name(self) -> str:
        """What its figure is called."""
        more = ["ring2"] * (self.stages > 1) + ["threads2"] * (self.threads > 1)
        return "_".join(("seed_equal", self.engine, self.precision, *more))


SIDES = (
    Side("onnx", "invariant"),
    Side("onnx", "fast"),
    Side("onnx", "invariant", stages=2),
    Side("llamacpp", "invariant"),
    Side("llamacpp", "invariant", stages=2),
    Side("llamacpp", "fast"),
    Side("llamacpp", "invariant", threads=2, prompts=FEW),
    Side("numpy", "invariant", prompts=FEW),
    Side("mlx", "invariant", prompts=FEW),
)


@dataclass(frozen=True)
class Answers:
    """The answers that a side gave: those among others that are the ones given alone, and all second turns."""

    equal: int
    asked: int
    second_turns: list[str]


def measure(side: Side) -> list[Figure]:
    """Ask each question alone, eight at a time and ten at a time in another order, then go on with each chat.

    A second turn is asked on the nodes that had the first one, and on nodes that know nothing of it.
    """
    print(f"{side.name}: {load_sentence()}", flush=True)
    questions = _questions(side.prompts)
    first, found = asyncio.run(_on_nodes(side, partial(_compare, questions)))
    cold = asyncio.run(_on_nodes(side, partial(_second_turns, questions, first)))
    same = sum(warm == other for warm, other in zip(found.second_turns, cold, strict=True))
    note = f"{found.equal} of {found.asked} among others as alone; {same} of {len(cold)} second turns warm as cold"
    print(f"{side.name}: {note}", flush=True)
    return [Figure(side.name, (found.equal + same) / (found.asked + len(cold)), "share", "1", note=note)]


async def _on_nodes(side: Side, ask: Any) -> Any:
    """Start the side's nodes, and return what `ask` returns of a client of the first one."""
    arguments = ["--engine", side.engine, "--threads", str(side.threads), "--precision", side.precision]
    with nodes(*(f"same-{stage}" for stage in range(side.stages)), arguments=arguments) as started:
        wait_for_all(started)
        async with httpx.AsyncClient(base_url=started[0].api, timeout=TIMEOUT_S) as client:
            found = await ask(client)
        _check_stages(started[0], side.stages)
        return found


def _check_stages(node: NodeProcess, stages: int) -> None:
    """Fail unless the model ran on so many stages."""
    found = [len(instance["stages"]) for instance in node.get("/v1/topology")["instances"]]
    assert found == [stages], f"{found} stages instead of {stages}"


async def _compare(questions: Sequence[dict[str, Any]], client: httpx.AsyncClient) -> tuple[list[str], Answers]:
    """Return the answers alone, and what was compared with them."""
    asked = [{**question, **sampling} for question in questions for sampling in SAMPLINGS]
    mixed = [*asked[::2], *asked[1::2]]  # other neighbours, and a prefill amid the decode steps of others
    alone = await _answers(client, asked, 1)
    together = await _answers(client, asked, TOGETHER)
    others = await _answers(client, mixed, MIXED)
    pairs = chain(zip(asked, together, strict=True), zip(mixed, others, strict=True))
    equal = sum(alone[asked.index(question)] == answer for question, answer in pairs)
    first = alone[:: len(SAMPLINGS)]
    return first, Answers(equal, 2 * len(asked), await _second_turns(questions, first, client))


async def _second_turns(
    questions: Sequence[dict[str, Any]], first: Sequence[str], client: httpx.AsyncClient
) -> list[str]:
    """Go on with each chat, greedily."""
    turns = [
        {"messages": [*question["messages"], _said("assistant", answer), _said("user", "Go on.")], **SAMPLINGS[0]}
        for question, answer in zip(questions, first, strict=True)
    ]
    return await _answers(client, turns, 1)


async def _answers(client: httpx.AsyncClient, questions: Sequence[dict[str, Any]], at_once: int) -> list[str]:
    answers: list[str] = []
    for at in range(0, len(questions), at_once):
        answers += await asyncio.gather(*(_answer(client, question) for question in questions[at : at + at_once]))
    return answers


async def _answer(client: httpx.AsyncClient, question: dict[str, Any]) -> str:
    body = {**question, "model": DEFAULT_MODEL, "max_tokens": TOKENS}
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def _questions(count: int) -> list[dict[str, Any]]:
    """Return short questions and, of each second one, a long one: with a paragraph of this project's prose."""
    text = " ".join(path.read_text() for path in prose()).split()
    asked = [f"Tell me a short story about {subject}." for subject in SUBJECTS[:count]]
    asked = [
        f"{question} Begin where this ends: {' '.join(text[80 * at : 80 * at + 8 * at])}" if at % 2 else question
        for at, question in enumerate(asked)
    ]
    return [{"messages": [_said("user", question)]} for question in asked]


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
