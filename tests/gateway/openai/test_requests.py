"""`gateway.openai.requests`: every field is honored, ignored on purpose, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.errors import status_of
from gateway.openai.errors import FieldError, error_body
from gateway.openai.requests import IGNORED, NEUTRAL, NEUTRAL_IN_MESSAGE, ChatRequest, parse

PLAIN: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


def parsed(**fields: Any) -> ChatRequest:
    """Parse the plain request with these further fields."""
    return parse(json.dumps({**PLAIN, **fields}).encode())


def refusal(body: Any) -> FieldError:
    """Return the error of a body; what is not bytes is written as JSON."""
    with pytest.raises(FieldError) as caught:
        parse(body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value


def refused(**fields: Any) -> FieldError:
    """Return the error of the plain request with these further fields."""
    return refusal({**PLAIN, **fields})


def refused_message(**fields: Any) -> FieldError:
    """Return the error of a request with these fields in its second message."""
    return refused(messages=[*PLAIN["messages"], {"role": "user", "content": "again", **fields}])


def test_plain_request_leaves_everything_to_the_model() -> None:
    request = parsed()
    assert (request.token_limit, request.temperature, request.stops, request.choices) == (None, None, (), 1)
    assert not request.stream
    assert not request.include_usage


def test_every_honored_field_is_read() -> None:
    request = parsed(
        temperature=0.5, top_p=0.9, top_k=40, min_p=0.05, max_tokens=7, stop="END", seed=2**64 - 1, n=3,
        stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    assert (request.temperature, request.top_p, request.top_k, request.min_p) == (0.5, 0.9, 40, 0.05)
    assert (request.token_limit, request.stops, request.seed, request.choices) == (7, ("END",), 2**64 - 1, 3)
    assert request.stream
    assert request.include_usage


def test_newer_name_of_the_token_limit_wins() -> None:
    assert parsed(max_tokens=5, max_completion_tokens=6).token_limit == 6


def test_null_leaves_a_field_to_the_model() -> None:
    optional = set(ChatRequest.__struct_fields__) - {"model", "messages"}
    assert parsed(**dict.fromkeys(optional)) == parsed()


def test_text_parts_are_joined_and_developer_becomes_system() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    request = parsed(messages=[{"role": "developer", "content": parts}, {"role": "tool", "content": "3"}])
    assert [message.message().for_template() for message in request.messages] == [
        {"role": "system", "content": "onetwo"},
        {"role": "tool", "content": "3"},
    ]


def test_message_of_a_response_is_accepted_back() -> None:
    nothing: dict[str, Any] = {"refusal": None, "tool_calls": None, "annotations": []}
    given_back = {"role": "assistant", "content": "hi", **nothing}
    assert len(parsed(messages=[*PLAIN["messages"], given_back]).messages) == 2


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_ignored_field_is_accepted(name: str) -> None:
    assert parsed(**{name: "anything"}) == parsed()


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_unsupported_field_is_refused_unless_neutral(name: str) -> None:
    for neutral in (None, *NEUTRAL[name]):
        assert parsed(**{name: neutral}) == parsed()
    error = refused(**{name: {"asks": "for something"}})
    assert (error.code, error.param) == ("unsupported_parameter", name)
    assert f"`{name}`" in error.message


@pytest.mark.parametrize("name", sorted(NEUTRAL_IN_MESSAGE))
def test_unsupported_message_field_is_refused_by_path(name: str) -> None:
    error = refused_message(**{name: [{"asks": "for something"}]})
    assert (error.code, error.param) == ("unsupported_parameter", f"messages[1].{name}")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"seed": 2**64}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": "x" * 257}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"model": "m" * 257}, "model"),
        ({"max_tokens": 2**31 + 1}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_completion_tokens": 2**31 + 1}, "max_completion_tokens"),
        ({"n": 10**6}, "n"),
        ({"stop": ["x"] * 10**5}, "stop"),
        ({"messages": [PLAIN["messages"][0]] * 4097}, "messages"),
        ({"messages": [{"role": "user", "content": "x", "name": "n" * 257}]}, "messages[0].name"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "n" * 257}]}, "messages[0].tool_call_id"),
        ({"user": "u" * (16 << 10)}, "user"),
        ({"metadata": {f"k{at}": "v" * 400 for at in range(50)}}, "metadata"),
        ({"tools": [{"name": "x" * (17 << 10)}]}, "tools"),
        (
            {"messages": [{"role": "user", "content": "x", "annotations": ["x" * (17 << 10)]}]},
            "messages[0].annotations",
        ),
    ],
)
def test_invalid_value_is_refused_by_path(fields: dict[str, Any], param: str) -> None:
    error = refused(**fields)
    body = error_body(error)["error"]
    assert (status_of(error), body["type"], body["param"]) == (400, "invalid_request_error", param)
    assert f"`{param}`" in error.message


@pytest.mark.parametrize("name", ["model", "messages"])
def test_missing_field_is_named(name: str) -> None:
    error = refusal({key: value for key, value in PLAIN.items() if key != name})
    assert (error.param, error.message) == (name, f"`{name}` is required")


def test_part_without_text_is_refused_by_path() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:"}}
    error = refused_message(content=[{"type": "text", "text": "what is this?"}, picture])
    assert (error.code, error.param) == ("unsupported_parameter", "messages[1].content[1]")


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url"])
def test_content_to_be_fetched_is_refused(kind: str) -> None:
    inside = {"url": "http://169.254.169.254/latest"}
    for part in (
        {"type": kind, "text": "x"},
        {"type": kind, kind: inside},
        {kind: inside, "type": kind},
        {"type": "text", "text": "x", kind: inside},
    ):
        error = refused_message(content=[part])
        assert (error.code, error.param) == ("unsupported_parameter", "messages[1].content[0]")


@pytest.mark.parametrize("name", ["chat_template", "prompt_template", "tokenizer", "trust_remote_code"])
def test_templates_and_code_in_a_request_are_refused(name: str) -> None:
    error = refused(**{name: "{{ cycler.__init__.__globals__ }}"})
    assert (error.code, error.param) == ("unknown_parameter", name)


def nested(levels: int) -> Any:
    """Return so many lists, one in the other."""
    return [] if levels == 1 else [nested(levels - 1)]


@pytest.mark.parametrize("name", ["metadata", "user", "tools"])
def test_json_deeper_than_64_is_refused(name: str) -> None:
    error = refused(**{name: nested(66)})
    assert (error.param, error.message) == (name, f"`{name}` is nested more than 64 deep; send less")
    assert parsed(metadata=nested(64)) == parsed()


@pytest.mark.parametrize(
    "body", [b"[" * (8 << 20), b'{"metadata": ' + b"[" * (8 << 20), b'{"metadata": ' + b'{"a":' * (1 << 20)]
)
def test_deeply_nested_body_is_refused(body: bytes) -> None:
    assert status_of(refusal(body)) == 400


@pytest.mark.parametrize("value", [b'"\\ud800"', b'"\xff"', b"1" * 5000, b"1e999", b'"\\q"'])
def test_invalid_json_in_an_ignored_field_is_refused(value: bytes) -> None:
    error = refusal(b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "user": ' + value + b"}")
    assert status_of(error) == 400
    assert "valid JSON" in error.message


def test_error_quotes_little_of_the_request() -> None:
    for error in (refused(**{"x" * 10**6: 1}), refused_message(role="x" * 10**6), refused_message(**{"x" * 10**6: 1})):
        assert len(error.message) < 500


def test_unknown_field_is_refused_with_a_suggestion() -> None:
    error = refused(temprature=1)
    assert (error.code, error.param) == ("unknown_parameter", "temprature")
    assert "did you mean `temperature`?" in error.message


def test_unknown_message_field_is_refused_by_path() -> None:
    assert refused_message(contents="x").param == "messages[1].contents"


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"null", b'{"model": "\xff"}', b"[" * 100_000, b'"\\ud800"'])
def test_body_that_is_not_an_object_is_refused(body: bytes) -> None:
    error = refusal(body)
    assert status_of(error) == 400
    assert "JSON" in error.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from([*ChatRequest.__struct_fields__, *NEUTRAL, *IGNORED])
MESSAGES = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "name", "audio"]), JSON, max_size=4), max_size=3
)


def outcome(value: object) -> ChatRequest | FieldError:
    """Return the request or the error that a JSON value gives; any other exception is raised."""
    try:
        return parse(json.dumps(value).encode())
    except FieldError as error:
        return error


@given(JSON | st.dictionaries(FIELDS, JSON | MESSAGES))
def test_any_json_is_parsed_or_refused(value: object) -> None:
    result = outcome(value)
    assert isinstance(result, ChatRequest) or (status_of(result) == 400 and result.message)


@given(st.dictionaries(FIELDS, JSON))
def test_any_fields_are_parsed_or_refused_by_name(
    fields: dict[str, Any],
) -> None:
    result = outcome({**PLAIN, **fields})
    if isinstance(result, FieldError):
        assert status_of(result) == 400
        assert (result.param or "").partition(".")[0].partition("[")[0] in fields


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(body: bytes) -> None:
    assert status_of(refusal(body)) == 400
