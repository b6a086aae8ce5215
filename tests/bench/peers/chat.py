"""A chat client that records the time of every piece of an answer, of one stream or of many at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import httpx

TOKENS = 64
CROWD = 8
ROUNDS = 3
WARM_TIMEOUT_S = 180.0
ROUNDS_TIMEOUT_S = 60.0  # then no further round begins
ANSWER_TIMEOUT_S = 90.0
CROWD_TIMEOUT_S = 180.0
SUBJECTS = (
    "a lighthouse", "a baker", "two rivers", "an old clock", "the moon", "a small dog", "a winter", "a violin",
    "a train", "a garden", "a storm", "a letter", "a bridge", "a mountain", "a library", "a ship",
)  # fmt: skip


class NoAnswer(Exception):
    """A server that did not answer as it should. The text is one sentence."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The times of a question and of each piece of its answer (monotonic seconds), and the number of tokens."""

    asked: float
    pieces: tuple[float, ...]
    tokens: int

    @property
    def first_s(self) -> float:
        """Seconds from the question to the first text."""
        return self.pieces[0] - self.asked

    @property
    def rate(self) -> float:
        """Tokens per second from the first text to the last."""
        return (self.tokens - 1) / max(self.pieces[-1] - self.pieces[0], 1e-9)


@dataclass(frozen=True, slots=True)
class Speed:
    """Medians over the rounds: seconds to the first text, tokens per second of one stream, and of eight together.

    The last is None if eight streams never ended; `why_not` is the reason why the rounds ended early.
    """

    first_s: float
    rate: float
    crowd_rate: float | None
    why_not: str = ""


def speed(api: str, model: str) -> Speed:
    """Ask a warm-up question, then one and eight at a time in turns, no question twice. Raises NoAnswer."""
    return asyncio.run(_speed(api, model))


async def _speed(api: str, model: str) -> Speed:
    singles: list[Answer] = []
    crowds: list[Sequence[Answer]] = []
    why_not = ""
    fresh = httpx.Limits(max_keepalive_connections=0)  # a kept connection may be closed just as the next question goes
    async with httpx.AsyncClient(base_url=api, timeout=WARM_TIMEOUT_S, limits=fresh) as client:
        asker = Asker(client, model)
        await asker.answers(1, WARM_TIMEOUT_S)
        ends = time.monotonic() + ROUNDS_TIMEOUT_S
        try:
            while not crowds or (len(crowds) < ROUNDS and time.monotonic() < ends):
                singles += await asker.answers(1, ANSWER_TIMEOUT_S)
                crowds.append(await asker.answers(CROWD, CROWD_TIMEOUT_S))
        except NoAnswer as reason:
            if not singles:
                raise
            why_not = str(reason)
    first_s, rate = median(answer.first_s for answer in singles), median(answer.rate for answer in singles)
    return Speed(first_s, rate, median(map(together, crowds)) if crowds else None, why_not)


def together(answers: Sequence[Answer]) -> float:
    """Return the tokens per second of concurrent answers: all tokens by the time from asking to the last text."""
    begun, ended = min(answer.asked for answer in answers), max(answer.pieces[-1] for answer in answers)
    return sum(answer.tokens for answer in answers) / (ended - begun)


class Asker:
    """Asks one server, no question twice."""

    def __init__(self, client: httpx.AsyncClient, model: str) -> None:
        self._client = client
        self._model = model
        self._questions = (
            f"Tell me a long story about {subject}, part {part}." for part in range(1, 9) for subject in SUBJECTS
        )

    async def answers(self, count: int, within_s: float) -> Sequence[Answer]:
        """Ask so many questions at once. Raises NoAnswer if one fails or the time is over."""
        asked = [_ask(self._client, self._model, next(self._questions)) for _ in range(count)]
        try:
            return await asyncio.wait_for(asyncio.gather(*asked), within_s)
        except TimeoutError:
            raise NoAnswer(f"{count} answers of {TOKENS} tokens took more than {within_s:.0f} s") from None
        except httpx.HTTPError as error:
            raise NoAnswer(f"it did not answer: {error!r}") from error


async def _ask(client: httpx.AsyncClient, model: str, question: str) -> Answer:
    """Get one greedy answer. A server that sends no usage is assumed to send one token per piece."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    pieces: list[float] = []
    counted = 0
    asked = time.monotonic()
    async with client.stream("POST", "/chat/completions", json=body) as answer:
        if answer.status_code != httpx.codes.OK:
            raise NoAnswer(f"it answered {answer.status_code}: {(await answer.aread()).decode()[:200]}")
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                counted = (event.get("usage") or {}).get("completion_tokens") or counted
                if _text(event):
                    pieces.append(time.monotonic())
    if not pieces:
        raise NoAnswer("its answer had no text")
    return Answer(asked, tuple(pieces), counted or len(pieces))


def _text(event: dict[str, Any]) -> str:
    choices = event.get("choices") or [{}]
    return (choices[0].get("delta") or {}).get("content") or ""
