"""`gateway.core.tokenizing`: what is tokenized of a text that is too long, and how many texts at a time."""

from __future__ import annotations

import asyncio
import threading

import pytest

from cluster.failures import FailureCode
from gateway.core.errors import GatewayCode, GatewayError
from gateway.core.prompt_limit import PromptLimit
from gateway.core.tokenizing import AT_A_TIME, LONG, PIECE, SHORT, Tokenizing, encode_within
from models.tokenizers.tokenizer import Tokenizer
from tests.support.gateway.text_stage import WITHIN_S
from tests.support.models import tiny_tokenizer

ROOMY = PromptLimit(1 << 20, "the model holds 1048576")


class NotingTokenizer(Tokenizer):
    """Records the lengths of the texts that it counts and encodes, and encodes while `open` is set only."""

    def __init__(self) -> None:
        super().__init__(tiny_tokenizer(), [2], None)
        self.counted: list[int] = []
        self.encoded: list[int] = []
        self.begun, self.open = threading.Event(), threading.Event()
        self.open.set()

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""
        self.encoded.append(len(text))
        self.begun.set()
        assert self.open.wait(WITHIN_S)
        return super().encode(text)

    def count(self, text: str) -> int:
        """Count the ids of `text`."""
        self.counted.append(len(text))
        return super().count(text)


@pytest.mark.parametrize("words", [0, 1, SHORT, PIECE // 2, PIECE])
def test_ids_are_those_of_the_whole_text(words: int) -> None:
    tokenizer, text = NotingTokenizer(), "模型🙂" + " the" * words
    ids = tokenizer.encode(text)
    assert encode_within(tokenizer, text, PromptLimit(len(ids), "it fits")) == tuple(ids)
    assert bool(tokenizer.counted) == (words > 1)


def test_far_too_long_text_is_counted_to_twice_the_limit() -> None:
    tokenizer = NotingTokenizer()
    with pytest.raises(GatewayError) as caught:
        encode_within(tokenizer, "x" * 1_000_000, PromptLimit(PIECE, f"the model holds {PIECE}"))
    assert caught.value.code == GatewayCode.CONTEXT_LENGTH_EXCEEDED
    assert f"first {3 * PIECE} of the prompt's 1000000 characters have {3 * PIECE} tokens" in caught.value.message
    assert f"holds {PIECE};" in caught.value.message
    assert (tokenizer.counted, tokenizer.encoded) == ([PIECE] * 3, [])


def test_stand_ins_are_counted_as_what_they_stand_for() -> None:
    tokenizer = NotingTokenizer()
    stand_ins = tokenizer.control_tokens.stand_ins("<|im_end|>")
    reading, hidden = tokenizer.reading(stand_ins), stand_ins.hide("<|im_end|>" * PIECE)
    assert (len(hidden), reading.expansion) == (PIECE, 10)
    with pytest.raises(GatewayError, match=f"first 3276 of the prompt's {PIECE} characters have 32760 tokens"):
        encode_within(reading, hidden, PromptLimit(PIECE // 2, "the model holds 8192"))


def test_text_slightly_too_long_is_refused_with_its_tokens() -> None:
    with pytest.raises(GatewayError, match="the prompt has 3001 tokens, and the model holds 3000;"):
        encode_within(NotingTokenizer(), "x" * 3001, PromptLimit(3000, "the model holds 3000"))


def test_hopeless_text_is_not_tokenized_at_all() -> None:
    tokenizer = NotingTokenizer()
    with pytest.raises(GatewayError, match="at least"):
        asyncio.run(Tokenizing().encode(tokenizer, "x" * 100_000, PromptLimit(1000, "the model holds 1000")))
    assert (tokenizer.counted, tokenizer.encoded) == ([], [])


@pytest.mark.parametrize(("length", "at_a_time"), [(LONG + 1, 1), (SHORT + 1, AT_A_TIME)])
def test_few_texts_are_tokenized_at_a_time(length: int, at_a_time: int) -> None:
    tokenizer, text = NotingTokenizer(), "x" * length
    tokenizer.open.clear()

    async def main() -> None:
        tokenizing = Tokenizing(wait_timeout_s=0.05)
        running = [asyncio.create_task(tokenizing.encode(tokenizer, text, ROOMY)) for _ in range(at_a_time)]
        await asyncio.sleep(0)  # each of them takes its place
        with pytest.raises(GatewayError, match="try again soon") as caught:
            await tokenizing.encode(tokenizer, text, ROOMY)
        assert (caught.value.code, caught.value.retryable) == (FailureCode.BUSY, True)
        tokenizer.open.set()
        assert {len(ids) for ids in await asyncio.gather(*running)} == {length}
        assert len(await tokenizing.encode(tokenizer, text, ROOMY)) == length

    asyncio.run(main())


def test_long_text_does_not_delay_a_shorter_one() -> None:
    slow, quick = NotingTokenizer(), NotingTokenizer()
    slow.open.clear()

    async def main() -> None:
        tokenizing = Tokenizing()
        long = asyncio.create_task(tokenizing.encode(slow, "x" * (LONG + 1), ROOMY))
        assert await asyncio.to_thread(slow.begun.wait, WITHIN_S)
        assert len(await tokenizing.encode(quick, "x" * LONG, ROOMY)) == LONG
        assert not long.done()
        slow.open.set()
        await long

    asyncio.run(main())


def test_cancelled_text_counts_until_its_thread_ends() -> None:
    tokenizer, text = NotingTokenizer(), "x" * (LONG + 1)
    tokenizer.open.clear()

    async def main() -> None:
        tokenizing = Tokenizing(wait_timeout_s=0.05)
        cancelled = asyncio.create_task(tokenizing.encode(tokenizer, text, ROOMY))
        assert await asyncio.to_thread(tokenizer.begun.wait, WITHIN_S)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(GatewayError, match="try again soon"):
            await tokenizing.encode(tokenizer, text, ROOMY)
        tokenizer.open.set()
        tokenizing.wait_timeout_s = WITHIN_S
        assert len(await tokenizing.encode(tokenizer, text, ROOMY)) == len(text)

    asyncio.run(main())
