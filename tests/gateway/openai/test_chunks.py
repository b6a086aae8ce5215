"""`gateway.openai.chunks`: objects and chunks fit OpenAI's own schemas, in ASCII."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from gateway.core.events import GenerationFinished, Timings, Usage
from gateway.core.progress import Reported
from gateway.http.json_response import encode_json
from gateway.openai import chunks
from gateway.openai.errors import FieldError, error_body
from gateway.openai.progress import comment

SCHEMAS = json.loads(Path(__file__).parents[2].joinpath("support", "gateway", "openai_schema.json").read_text())
IDENTITY = chunks.Identity("chatcmpl-1", 1_800_000_000, "tiny", "exobus-1")
END = GenerationFinished(Usage(9, 4, 21), Timings(queued_s=1.5, first_token_s=0.5, decode_s=2.0), seed=7, nodes=2)


def check(name: str, body: dict[str, Any]) -> None:
    """Check that a body as clients read it fits the official schema of that name."""
    validator = Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": SCHEMAS["components"]})
    validator.validate(json.loads(encode_json(body)))


@pytest.mark.parametrize(
    "chunk",
    [
        chunks.role_chunk(IDENTITY, 0, usage=True),
        chunks.text_chunk(IDENTITY, 1, "text", usage=False),
        chunks.finish_chunk(IDENTITY, 0, "stop", usage=True),
        chunks.finish_chunk(IDENTITY, 0, "length", usage=False),
        chunks.usage_chunk(IDENTITY, END),
    ],
)
def test_every_chunk_fits_the_official_schema(chunk: dict[str, Any]) -> None:
    check("CreateChatCompletionStreamResponse", chunk)


def test_completion_fits_the_official_schema() -> None:
    check("CreateChatCompletionResponse", chunks.completion(IDENTITY, [("one", "stop"), ("", "length")], END))


def test_error_fits_the_official_schema() -> None:
    check("ErrorResponse", error_body(FieldError("a sentence", code="a_code", param="model")))


def test_schema_rejects_a_wrong_object() -> None:
    chunk = {**chunks.role_chunk(IDENTITY, 0, usage=False), "object": "chat.completion"}
    with pytest.raises(Exception, match=r"chat\.completion"):
        check("CreateChatCompletionStreamResponse", chunk)


def test_usage_is_null_before_a_usage_chunk() -> None:
    assert chunks.text_chunk(IDENTITY, 0, "x", usage=True)["usage"] is None
    assert "usage" not in chunks.text_chunk(IDENTITY, 0, "x", usage=False)


def test_rates_leave_out_cached_and_first_tokens() -> None:
    body = chunks.timings_body(END)
    assert (body["prompt_per_second"], body["predicted_per_second"]) == (10.0, 10.0)


def test_rates_are_zero_if_no_time_passed() -> None:
    body = chunks.timings_body(replace(END, usage=Usage(9, 4, 1), timings=Timings(0.0, 0.0, 0.0)))
    assert (body["prompt_per_second"], body["predicted_per_second"]) == (0.0, 0.0)


def test_cached_tokens_are_separate_in_timings_only() -> None:
    usage, timings = chunks.usage_body(END.usage), chunks.timings_body(END)
    assert (usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]) == (9, 4)
    assert (timings["prompt_n"], timings["cache_n"], timings["queued_ms"]) == (5, 4, 1500.0)


@given(st.text())
def test_any_text_survives_as_one_ascii_line(text: str) -> None:
    event = chunks.event(chunks.text_chunk(IDENTITY, 0, text, usage=False))
    assert event.isascii()
    assert event.count(b"\n") == 2
    assert json.loads(event.removeprefix(b"data: "))["choices"][0]["delta"]["content"] == text


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_comment_is_one_line_for_any_text(text: str) -> None:
    line = comment(Reported(text))
    assert line.startswith(b": exobus")
    assert line.endswith(b"\n\n")
    assert not any(byte in line[:-2] for byte in b"\r\n")
