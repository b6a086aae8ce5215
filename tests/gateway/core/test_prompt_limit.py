"""`gateway.core.prompt_limit`: refusals with both numbers, and no refusal of a prompt that fits."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.dataplane.frames import HEADER_BYTES
from bus.net.sockets import DATA_BYTES
from cluster.openings import Opening
from cluster.sampling import SamplingParams
from gateway.core.errors import ErrorKind, GatewayCode, GatewayError, RequestField
from gateway.core.prompt_limit import MAX_TEXT_BYTES, PromptLimit, check_text_bytes, prompt_limit
from models.card import ModelCard
from models.catalogue import Catalogue
from models.tokenizers.tokenizer import Tokenizer
from ring.prefix_cache import BLOCK
from tests.support.models import tiny_tokenizer

TINY = Tokenizer(tiny_tokenizer(), [2], None)
PIECES = st.sampled_from(["the", " the", "an", "模型", "🙂", "<|endoftext|>", " " * 40, "é"])


def card(context_length: int, vocab_size: int = 49152) -> ModelCard:
    """Return the default model's card with another context and vocabulary."""
    default = Catalogue.load().get("smollm2-135m")
    return msgspec.structs.replace(default, context_length=context_length, vocab_size=vocab_size)


@given(st.integers(1, 10_000), st.integers(0, 500))
def test_prompt_as_long_as_the_context_is_refused(context_length: int, beyond: int) -> None:
    limit = prompt_limit(card(context_length))
    limit.check_tokens(context_length - 1)
    with pytest.raises(GatewayError) as caught:
        limit.check_tokens(context_length + beyond)
    error = caught.value
    assert (error.kind, error.code) == (ErrorKind.TOO_LARGE, GatewayCode.CONTEXT_LENGTH_EXCEEDED)
    assert error.field is RequestField.PROMPT
    assert f"has {context_length + beyond} tokens" in error.message
    assert f"holds {context_length} " in error.message


@given(st.lists(PIECES, max_size=30).map("".join) | st.text(max_size=50))
def test_characters_never_refuse_a_text_that_fits(text: str) -> None:
    PromptLimit(TINY.count(text), "it fits").check_characters(len(text), TINY.longest_token)


def test_too_many_characters_are_refused_with_both_numbers() -> None:
    with pytest.raises(GatewayError, match="101 characters, at least 11 tokens, and it holds 10; shorten"):
        PromptLimit(10, "it holds 10").check_characters(101, 10)


@pytest.mark.parametrize(("vocab_size", "most"), [(49152, 1 << 18), (128256, 183500)])
def test_longest_prompt_fits_one_frame(vocab_size: int, most: int) -> None:
    limit = prompt_limit(card(1_000_000, vocab_size))
    blocks = tuple(range(1 << 17, (1 << 17) + most // BLOCK))
    prompt, eos = (vocab_size - 1,) * most, frozenset(range(vocab_size - 256, vocab_size))
    opening = Opening(prompt, most, 1 << 30, eos, SamplingParams(), ("x" * 256,) * 8, reuse=blocks, drop=blocks)
    assert limit.tokens == most
    assert f"at most {most}" in limit.reason
    assert len(msgspec.msgpack.encode(opening)) <= DATA_BYTES - HEADER_BYTES


def test_text_that_no_model_takes_is_refused() -> None:
    check_text_bytes(MAX_TEXT_BYTES)
    with pytest.raises(GatewayError, match=f"has {MAX_TEXT_BYTES + 1} bytes of text, and at most {MAX_TEXT_BYTES}"):
        check_text_bytes(MAX_TEXT_BYTES + 1)
