"""Tokenizes the prompts of all requests: never on the loop for long, and in a bounded amount of memory.

A tokenizer needs some 80 bytes of memory for each byte of a text, and as much again for each token. So only a few texts
are tokenized at a time, long ones one after another, and a text that may be far too long is counted in pieces first.
A thread keeps a part of the memory of the longest text that was tokenized in it, so all long ones share one thread.
Knows no models.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from cluster.failures import FailureCode
from gateway.core.errors import unavailable
from gateway.core.prompt_limit import PromptLimit, check_text_bytes

SHORT = 2048  # characters that are tokenized in less time than handing them to a thread takes
LONG = 64 << 10  # characters, from which texts wait for each other
PIECE = 16 << 10  # characters
SHORTEST_PIECE = 128  # characters; a cut adds few tokens to those
AT_A_TIME = 4  # texts that are not long
WAIT_TIMEOUT_S = 30.0
CUT_MARGIN = 2
"""A cut changes the number of tokens by a few, so pieces show that a text is too long if they have twice the limit."""


Result = TypeVar("Result")


class TextTokenizer(Protocol):
    """What tokenizing needs of a tokenizer."""

    @property
    def longest_token(self) -> int:
        """The most characters of one token."""

    @property
    def expansion(self) -> int:
        """The most characters that one character of a text is encoded as; more than 1 if some stand for others."""

    def encode(self, text: str) -> list[int]:
        """Convert text to ids."""

    def count(self, text: str) -> int:
        """Count the ids of a text."""


class Tokenizing:
    """The texts that are being tokenized, and those that wait for it. Lives on one asyncio loop."""

    def __init__(self, wait_timeout_s: float = WAIT_TIMEOUT_S) -> None:
        self.wait_timeout_s = wait_timeout_s
        self._long_lane = asyncio.Semaphore(1)
        self._lane = asyncio.Semaphore(AT_A_TIME)
        self._long_thread = ThreadPoolExecutor(1, "long texts")
        self._threads = ThreadPoolExecutor(AT_A_TIME, "texts")

    async def encode(self, tokenizer: TextTokenizer, text: str, limit: PromptLimit) -> tuple[int, ...]:
        """Return the ids of a text.

        Raises GatewayError: too large with both numbers, or busy if other texts are tokenized for WAIT_TIMEOUT_S.
        """
        limit.check_characters(len(text), tokenizer.longest_token)
        most = len(text) * tokenizer.expansion
        return await self.run(most, lambda: encode_within(tokenizer, text, limit))

    async def run(self, characters: int, work: Callable[[], Result]) -> Result:
        """Do something with a text of so many characters, in a thread unless it is short.

        Raises GatewayError, busy, if other texts are worked on for WAIT_TIMEOUT_S.
        """
        if characters <= SHORT:
            return work()
        is_long = characters > LONG
        lane, threads = (self._long_lane, self._long_thread) if is_long else (self._lane, self._threads)
        try:
            async with asyncio.timeout(self.wait_timeout_s):
                await lane.acquire()
        except TimeoutError:
            sentence = f"other long prompts were tokenized for {self.wait_timeout_s:g} s; try again soon"
            raise unavailable(FailureCode.BUSY, sentence) from None
        running = asyncio.get_running_loop().run_in_executor(threads, work)
        running.add_done_callback(lambda done: _release(lane, done))  # a thread goes on if its request is cancelled
        return await asyncio.shield(running)


def _release(lane: asyncio.Semaphore, done: asyncio.Future[Any]) -> None:
    lane.release()
    if not done.cancelled():
        done.exception()  # its request may be gone


def encode_within(tokenizer: TextTokenizer, text: str, limit: PromptLimit) -> tuple[int, ...]:
    """Return the ids of a text. Raises GatewayError, before the text is tokenized as a whole if it is far too long."""
    size = len(text.encode())
    check_text_bytes(size)
    if size * tokenizer.expansion > CUT_MARGIN * limit.tokens:  # a token has one byte or more
        _check_pieces(tokenizer, text, limit)
    ids = tokenizer.encode(text)
    limit.check_tokens(len(ids))
    known: dict[int, int] = {}
    return tuple(known.setdefault(token, token) for token in ids)  # equal ids as one object: 8 bytes each, not 36


def _check_pieces(tokenizer: TextTokenizer, text: str, limit: PromptLimit) -> None:
    counted = 0
    length = max(PIECE // tokenizer.expansion, SHORTEST_PIECE)
    for begin in range(0, len(text), length):
        piece = text[begin : begin + length]
        counted += tokenizer.count(piece)
        if counted > CUT_MARGIN * limit.tokens:
            read = begin + len(piece)
            raise limit.refusal(f"the first {read} of the prompt's {len(text)} characters have {counted} tokens")
