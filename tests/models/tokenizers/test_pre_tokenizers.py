"""`models.tokenizers.pre_tokenizers`: texts are split as each family splits them, and nothing of them is lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from models.tokenizers.pre_tokenizers import SPLIT_RULES

CODE = "x = [\n    12345"
PROSE = "We'Ve 33 a ½b."


def pieces(name: str, text: str) -> list[str]:
    """Split a text by the rule of that name, and return the pieces as plain text."""
    found = SPLIT_RULES[name].pre_tokenizer().pre_tokenize_str(text)
    return [decoders.ByteLevel().decode([piece]) for piece, _ in found]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("gpt-2", CODE, ["x", " =", " [", "\n   ", " 12345"]),
        ("smollm", CODE, ["x", " =", " [", "\n    ", "1", "2", "3", "4", "5"]),
        ("llama-bpe", CODE, ["x", " =", " [\n", "   ", " ", "123", "45"]),
        ("qwen2", CODE, ["x", " =", " [\n", "   ", " ", "1", "2", "3", "4", "5"]),
        ("deepseek-llm", CODE, ["x", " =", " [", "\n", "    ", "12345"]),
        ("deepseek-coder", CODE, ["x", " =", " [", "\n", "    ", "1", "2", "3", "4", "5"]),
        ("deepseek-v3", CODE, ["x", " =", " [\n", "    ", "123", "45"]),
        ("falcon", CODE, ["x", " ", "=", " ", "[", "\n   ", " ", "123", "45"]),
        ("gpt-2", PROSE, ["We", "'", "Ve", " 33", " a", " ½", "b", "."]),
        ("smollm", PROSE, ["We", "'", "Ve", " ", "3", "3", " a", " ", "½", "b", "."]),
        ("llama-bpe", PROSE, ["We", "'Ve", " ", "33", " a", " ", "½", "b", "."]),
        ("tekken", "aBc DEf 12/\n", ["a", "Bc", " DEf", " ", "1", "2", "/\n"]),
        ("gpt-4o", "it's 1234/\n", ["it's", " ", "123", "4", "/\n"]),
        ("qwen2", "e\u0301t\u00e9 12", ["e", "\u0301t\u00e9", " ", "1", "2"]),
        ("qwen35", "e\u0301t\u00e9 12", ["e\u0301t\u00e9", " ", "1", "2"]),
        ("tiny_aya", "aBc 1234567", ["a", "Bc", " ", "1", "234", "567"]),
        ("ufakzeka", "Ay'den 12", ["Ay", "'den", " ", "1", "2"]),
        ("bailingmoe", "it's\n\n12", ["it", "'s", "\n\n", "1", "2"]),
        ("exaone-moe", "a bc d1\n", ["a bc d", "1", "\n"]),
        ("viking", "Terve, 12!", ["Terve", ",", " ", "1", "2", "!"]),
    ],
)
def test_text_is_split_like_its_family(name: str, text: str, expected: list[str]) -> None:
    assert pieces(name, text) == expected


@pytest.mark.parametrize("name", SPLIT_RULES)
@settings(max_examples=20)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_split_loses_no_character(name: str, text: str) -> None:
    found = SPLIT_RULES[name].pre_tokenizer().pre_tokenize_str(text)
    assert decoders.ByteLevel().decode([piece for piece, _ in found]) == text
