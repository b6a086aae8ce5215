"""`gateway.core.choice`: the text of tokens, and its ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.core.choice import ChoiceText
from gateway.core.events import FinishReason
from models.tokenizers.tokenizer import Tokenizer
from tests.support.models import EOS_TOKEN_ID, write_tokenizer_files


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("model")
    write_tokenizer_files(folder)
    return Tokenizer.load(folder)


def shown(tokenizer: Tokenizer, text: str, tail: list[int], *stops: str) -> tuple[str, FinishReason | None, int]:
    """Return the text, its finish reason and the tokens taken if a stage sends the tokens of `text` and then `tail`."""
    tokens = [*tokenizer.encode(text), *tail]
    choice, pieces = ChoiceText(tokenizer, stops), []
    for number, token in enumerate(tokens, start=1):
        pieces.append(choice.push(token, last=number == len(tokens)))
        if choice.reason:
            break
    return "".join(pieces), choice.reason, number


def test_end_token_ends_the_text_unseen(tokenizer: Tokenizer) -> None:
    assert shown(tokenizer, "hello", [EOS_TOKEN_ID]) == ("hello", FinishReason.STOP, 6)


def test_text_without_end_token_ends_at_limit(tokenizer: Tokenizer) -> None:
    assert shown(tokenizer, "hello", []) == ("hello", FinishReason.LENGTH, 5)


def test_stop_string_ends_the_text_early(tokenizer: Tokenizer) -> None:
    assert shown(tokenizer, "hello", [EOS_TOKEN_ID], "l") == ("he", FinishReason.STOP, 3)


def test_unfinished_stop_string_is_shown_at_the_end(tokenizer: Tokenizer) -> None:
    assert shown(tokenizer, "hello", [EOS_TOKEN_ID], "o!") == ("hello", FinishReason.STOP, 6)


def test_unfinished_character_becomes_a_replacement_at_the_end(tokenizer: Tokenizer) -> None:
    (*_, half, _) = tokenizer.encode("xé")
    assert shown(tokenizer, "x", [half]) == ("x\ufffd", FinishReason.LENGTH, 2)
