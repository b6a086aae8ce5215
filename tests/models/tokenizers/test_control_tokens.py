"""`models.tokenizers.control_tokens`: control tokens in any text are found, hidden and put back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import TokenizerError
from models.tokenizers.control_tokens import ControlTokens

NAMES = ["<|im_end|>", "<|im_start|>", "<s>", "<s>>", "[INST]", "[/INST]", "x"]
CONTROL = ControlTokens(NAMES)

# Texts that are full of control tokens, parts of them, and characters that could stand in for one.
TEXT = st.lists(st.sampled_from([*NAMES, "<|im_", "end|>", "<", "[", "]", "a", " \n", "\U000f0000"])).map("".join)
VALUE = st.recursive(
    TEXT | st.none() | st.booleans() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def texts(value: Any) -> list[str]:
    """List the texts of a JSON value."""
    if isinstance(value, dict):
        return [*value, *(text for inner in value.values() for text in texts(inner))]
    if isinstance(value, list):
        return [text for inner in value for text in texts(inner)]
    return [value] if isinstance(value, str) else []


def has_one(value: Any) -> bool:
    """Return whether a text of the value has a control token."""
    return any(name in text for text in texts(value) for name in NAMES)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", [""]),
        ("plain <s", ["plain <s"]),
        ("a<s>>b", ["a", "<s>>", "b"]),
        ("<s><s>", ["", "<s>", "", "<s>", ""]),
        ("<|im_<|im_end|>", ["<|im_", "<|im_end|>", ""]),
    ],
)
def test_text_is_split_at_its_control_tokens(text: str, pieces: list[str]) -> None:
    assert CONTROL.split(text) == pieces


@given(TEXT)
def test_split_finds_every_control_token(text: str) -> None:
    pieces = CONTROL.split(text)
    assert "".join(pieces) == text
    assert not has_one(pieces[::2])
    assert set(pieces[1::2]) <= set(NAMES)


@given(VALUE)
def test_hidden_value_has_no_control_token(value: Any) -> None:
    stand_ins = CONTROL.stand_ins(value)
    hidden = stand_ins.hide(value)
    assert bool(stand_ins) == has_one(value)
    assert not has_one(hidden)
    assert [stand_ins.restore(text) for text in texts(hidden)] == texts(value)


@given(VALUE)
def test_spoiled_value_has_no_control_token(value: Any) -> None:
    spoiled = CONTROL.stand_ins(value).spoil(value)
    assert not has_one(spoiled)
    if not has_one(value):
        assert spoiled == value


def test_stand_in_is_no_character_of_the_value() -> None:
    stand_ins = CONTROL.stand_ins(["\U000f0000<s>", {"\U000f0001": "[INST]"}])
    assert list(stand_ins.characters) == ["<s>", "[INST]"]
    assert set(stand_ins.characters.values()).isdisjoint("\U000f0000\U000f0001")


def test_value_without_a_free_character_is_not_mistaken_for_plain() -> None:
    value = "".join(map(chr, range(0xF0000, 0xFFFFE))) + "<s>"
    stand_ins = CONTROL.stand_ins(value)
    assert stand_ins
    assert not has_one(stand_ins.hide(value))


def test_no_names_find_nothing() -> None:
    assert ControlTokens([]).split("<s>") == ["<s>"]
    assert not ControlTokens([""]).stand_ins("<s>")


def test_tokens_that_begin_with_each_other_are_refused_in_a_sentence() -> None:
    assert ControlTokens("<" * length for length in range(1, 40)).split("a<<<b") == ["a", "<<<", "b"]
    with pytest.raises(TokenizerError, match="begin with each other too often; use another model"):
        ControlTokens("<" * length for length in range(1, 5000))
