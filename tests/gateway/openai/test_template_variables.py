"""`gateway.openai.template_variables`: what a request says of thinking reaches the template by the names they read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.core.request import Conversation
from gateway.openai.errors import FieldError
from gateway.openai.requests import parse
from gateway.openai.template_variables import RESERVED

PLAIN: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


def variables(**fields: Any) -> dict[str, Any]:
    """Return the variables of a request with these fields."""
    prompt = parse(json.dumps({**PLAIN, **fields}).encode()).generation().prompt
    assert isinstance(prompt, Conversation)
    return dict(prompt.variables)


def thinking(on: bool, **others: Any) -> dict[str, Any]:
    """Return the variables that turn thinking on or off, and others."""
    return {"enable_thinking": on, "thinking": on, **others}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"chat_template_kwargs": {}}, {}),
        ({"chat_template_kwargs": None, "reasoning_effort": None, "enable_thinking": None}, {}),
        ({"enable_thinking": False}, thinking(False)),
        ({"reasoning_effort": "none"}, thinking(False)),
        ({"reasoning_effort": "low"}, thinking(True, reasoning_effort="low")),
        ({"reasoning_effort": "high", "enable_thinking": False}, thinking(False, reasoning_effort="high")),
        ({"chat_template_kwargs": {"a": [1, {"b": None}]}}, {"a": [1, {"b": None}]}),
        (
            {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "none"},
            {"enable_thinking": True, "thinking": False},
        ),
    ],
)
def test_fields_become_variables_of_the_template(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert variables(**fields) == expected


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([], "expected an object"),
        ("x", "expected an object"),
        ({"two words": 1}, "has a name that is no variable's"),
        ({"": 1}, "has a name that is no variable's"),
        ({"a": "x" * (17 << 10)}, "is larger than 16 KiB"),
        *(({name: None}, f"may not set {name}") for name in sorted(RESERVED)),
    ],
    ids=str,
)
def test_argument_that_no_template_may_get_is_refused(value: Any, sentence: str) -> None:
    with pytest.raises(FieldError, match=sentence) as caught:
        variables(chat_template_kwargs=value)
    assert caught.value.param == "chat_template_kwargs"


@pytest.mark.parametrize("field", ["reasoning_effort", "enable_thinking"])
def test_unknown_value_is_refused_by_name(field: str) -> None:
    with pytest.raises(FieldError) as caught:
        variables(**{field: "sometimes"})
    assert caught.value.param == field
