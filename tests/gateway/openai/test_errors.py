"""`gateway.openai.errors`: refusals and failures as OpenAI's official client sees them, of a real gateway."""

from __future__ import annotations

import re

import msgspec
import openai
import pytest

from bus.client import RequestError
from bus.messages import (
    InstanceReady,
    Reply,
    Work,
)
from cluster.failures import FailureCode
from cluster.openings import SessionFailure
from tests.support.gateway.chat import MESSAGES, PLAIN, answering, post
from tests.support.gateway.gateway_rig import (
    CONTEXT_LENGTH,
    MODEL,
    Rig,
)
from tests.support.gateway.text_stage import WITHIN_S


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_model_is_not_found_with_a_suggestion(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="tinny", messages=MESSAGES, stream=stream)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "did you mean tiny" in str(caught.value)


def test_long_prompt_is_refused_with_both_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x" * 2000}])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    numbers = [int(number) for number in re.findall(r"\d+", caught.value.message)]
    assert CONTEXT_LENGTH in numbers
    assert any(number > 2000 for number in numbers)


def test_token_limit_is_clipped_to_the_context(rig: Rig) -> None:
    usage = post(rig, {**PLAIN, "max_tokens": 10**6}).json()["usage"]
    opening = list(rig.stage.openings.values())[-1]
    assert opening.max_tokens == CONTEXT_LENGTH - usage["prompt_tokens"]


def test_official_client_sees_the_invalid_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=3)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")
    assert "<= 2" in caught.value.message


@pytest.mark.parametrize("body", [b"{broken", b"", b"[]", b"\xff\xfe"])
def test_malformed_body_is_refused(rig: Rig, body: bytes) -> None:
    response = post(rig, body)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_body_beyond_eight_mebibytes_is_refused(rig: Rig) -> None:
    assert post(rig, b" " * ((8 << 20) + 1)).status_code == 413


@pytest.mark.parametrize(
    ("code", "status", "header"),
    [
        ("insufficient_memory", 400, ("x-should-retry", "false")),
        ("download_failed", 503, ("retry-after", "2")),
        ("load_failed", 503, ("retry-after", "2")),
        ("model_not_found", 404, ("content-type", "application/json")),
    ],
)
def test_failure_of_the_node_gets_its_status(rig: Rig, code: str, status: int, header: tuple[str, str]) -> None:
    def fail(work: Work) -> Reply:
        raise RequestError(FailureCode(code), "a sentence of the node")

    with answering(rig, fail):
        response = post(rig, {**PLAIN, "stream": True})
    assert (response.status_code, response.headers[header[0]]) == (status, header[1])
    assert (response.json()["error"]["code"], response.json()["error"]["message"]) == (code, "a sentence of the node")


@pytest.mark.parametrize("stream", [False, True])
def test_full_queue_gives_retry_after(client: openai.OpenAI, rig: Rig, stream: bool) -> None:
    rig.set_script(
        "", end=False, failure=SessionFailure(FailureCode.QUEUE_FULL, "64 sessions wait already", retry_after_s=7)
    )
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=stream)
    error, headers = caught.value, caught.value.response.headers
    assert (error.code, error.type, error.response.status_code) == ("queue_full", "rate_limit_error", 429)
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("7", "7000")
    assert "64 sessions wait already" in error.message


def test_official_client_retries_after_a_full_queue(rig: Rig) -> None:
    rig.set_script("", end=False, failure=SessionFailure(FailureCode.QUEUE_FULL, "come back", retry_after_s=1))
    with openai.OpenAI(base_url=f"{rig.url}/v1", api_key="unused", max_retries=1, timeout=WITHIN_S) as client:
        opened = len(rig.stage.openings)
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert len(rig.stage.openings) == opened + 2


@pytest.mark.parametrize("stream", [False, True])
def test_oversized_session_is_not_retryable(rig: Rig, stream: bool) -> None:
    rig.set_script("", end=False, failure=SessionFailure(FailureCode.TOO_LARGE, "the session needs 900 positions"))
    response = post(rig, {**PLAIN, "stream": stream})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "too_large", "max_tokens")
    assert response.headers["x-should-retry"] == "false"


def test_prompt_beyond_the_ring_memory_opens_no_session(client: openai.OpenAI, rig: Rig) -> None:
    stage = msgspec.structs.replace(rig.instance.stages[0], positions=5)
    small, opened = msgspec.structs.replace(rig.instance, stages=(stage,)), len(rig.stage.openings)
    with answering(rig, lambda _: InstanceReady(small)), pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert (caught.value.code, caught.value.param) == ("too_large", "messages")
    assert len(rig.stage.openings) == opened


def test_token_limit_is_clipped_to_the_ring_memory(rig: Rig) -> None:
    stage = msgspec.structs.replace(rig.instance.stages[0], positions=100)
    small = msgspec.structs.replace(rig.instance, stages=(stage,))
    with answering(rig, lambda _: InstanceReady(small)):
        assert post(rig, PLAIN).status_code == 200
    assert list(rig.stage.openings.values())[-1].positions == 100


def test_unreachable_instance_is_retryable(rig: Rig) -> None:
    stage = msgspec.structs.replace(rig.instance.stages[0], endpoints=("ipc:///nowhere/stage.ring",))
    lost = msgspec.structs.replace(rig.instance, stages=(stage,))
    with answering(rig, lambda _: InstanceReady(lost)):
        response = post(rig, PLAIN)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "node_lost")
