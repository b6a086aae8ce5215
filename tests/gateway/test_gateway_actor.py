"""The gateway's refusals, its other routes and its process, over real HTTP and a real bus."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import openai
import pytest

from bus.client import RequestError
from bus.messages import (
    InstanceReady,
    Reply,
    Work,
)
from bus.process import CANNOT_START
from cluster.failures import FailureCode
from cluster.openings import SessionFailure
from tests.support.chat import MESSAGES, PLAIN, answering, post, raw_request
from tests.support.ring import (
    CONTEXT_LENGTH,
    MODEL,
    NODE_ID,
    POSITIONS,
    Rig,
    eventually,
    make_config,
    running_rig,
    start_gateway,
    stop_gateway,
)
from tests.support.stage import WITHIN_S


@pytest.fixture(scope="module")
def module_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(tmp_path_factory.mktemp("gateway")) as rig:
        yield rig


@pytest.fixture
def rig(module_rig: Rig) -> Iterator[Rig]:
    """The module's rig; after each test every session is closed and the gateway lives."""
    module_rig.tell("Hello world")
    yield module_rig
    assert module_rig.all_closed()
    assert module_rig.gateway.poll() is None


@pytest.fixture
def client(rig: Rig) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{rig.url}/v1", api_key="unused", max_retries=0, timeout=WITHIN_S) as client:
        yield client


# -- refusals


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_not_found_and_near_names_are_told(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="tinny", messages=MESSAGES, stream=stream)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "did you mean tiny" in str(caught.value)


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x" * 2000}])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    numbers = [int(number) for number in re.findall(r"\d+", caught.value.message)]
    assert CONTEXT_LENGTH in numbers
    assert any(number > 2000 for number in numbers)


def test_more_tokens_than_the_context_holds_are_clipped_to_the_rest(rig: Rig) -> None:
    usage = post(rig, {**PLAIN, "max_tokens": 10**6}).json()["usage"]
    opening = list(rig.stage.openings.values())[-1]
    assert opening.max_tokens == CONTEXT_LENGTH - usage["prompt_tokens"]


def test_the_official_client_sees_which_field_was_wrong(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=3)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")
    assert "<= 2" in caught.value.message


@pytest.mark.parametrize("body", [b"{broken", b"", b"[]", b"\xff\xfe"])
def test_a_broken_body_is_refused(rig: Rig, body: bytes) -> None:
    response = post(rig, body)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_beyond_eight_mebibytes_is_refused(rig: Rig) -> None:
    assert post(rig, b" " * ((8 << 20) + 1)).status_code == 413


@pytest.mark.parametrize(
    ("code", "status", "header"),
    [
        ("insufficient_memory", 400, ("x-should-retry", "false")),
        ("download_failed", 503, ("retry-after", "2")),
        ("undeliverable", 503, ("retry-after", "2")),
        ("model_not_found", 404, ("content-type", "application/json")),
    ],
)
def test_what_the_node_answers_becomes_the_right_status(
    rig: Rig, code: str, status: int, header: tuple[str, str]
) -> None:
    def fail(work: Work) -> Reply:
        raise RequestError(FailureCode(code), "a sentence of the node")

    with answering(rig, fail):
        response = post(rig, {**PLAIN, "stream": True})
    assert (response.status_code, response.headers[header[0]]) == (status, header[1])
    assert (response.json()["error"]["code"], response.json()["error"]["message"]) == (code, "a sentence of the node")


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_a_rate_limit_that_says_when_to_come_back(
    client: openai.OpenAI, rig: Rig, stream: bool
) -> None:
    rig.tell("", end=False, failure=SessionFailure(FailureCode.QUEUE_FULL, "64 sessions wait already", retry_after_s=7))
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=stream)
    error, headers = caught.value, caught.value.response.headers
    assert (error.code, error.type, error.response.status_code) == ("queue_full", "rate_limit_error", 429)
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("7", "7000")
    assert "64 sessions wait already" in error.message


def test_the_official_client_comes_back_when_the_queue_said(rig: Rig) -> None:
    rig.tell("", end=False, failure=SessionFailure(FailureCode.QUEUE_FULL, "come back", retry_after_s=1))
    with openai.OpenAI(base_url=f"{rig.url}/v1", api_key="unused", max_retries=1, timeout=WITHIN_S) as client:
        opened = len(rig.stage.openings)
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert len(rig.stage.openings) == opened + 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_session_that_no_memory_here_can_hold_is_not_worth_repeating(rig: Rig, stream: bool) -> None:
    rig.tell("", end=False, failure=SessionFailure(FailureCode.TOO_LARGE, "the session needs 900 positions"))
    response = post(rig, {**PLAIN, "stream": stream})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "too_large", "max_tokens")
    assert response.headers["x-should-retry"] == "false"


def test_a_prompt_beyond_the_rings_memory_opens_no_session(client: openai.OpenAI, rig: Rig) -> None:
    stage = msgspec.structs.replace(rig.instance.stages[0], positions=5)
    small, opened = msgspec.structs.replace(rig.instance, stages=(stage,)), len(rig.stage.openings)
    with answering(rig, lambda _: InstanceReady(small)), pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert (caught.value.code, caught.value.param) == ("too_large", "messages")
    assert len(rig.stage.openings) == opened


def test_more_tokens_than_the_rings_memory_holds_are_clipped_to_the_rest(rig: Rig) -> None:
    stage = msgspec.structs.replace(rig.instance.stages[0], positions=100)
    small = msgspec.structs.replace(rig.instance, stages=(stage,))
    with answering(rig, lambda _: InstanceReady(small)):
        assert post(rig, PLAIN).status_code == 200
    assert list(rig.stage.openings.values())[-1].positions == 100


def test_an_instance_that_cannot_be_reached_is_worth_repeating(rig: Rig) -> None:
    stage = msgspec.structs.replace(rig.instance.stages[0], endpoints=("ipc:///nowhere/stage.ring",))
    lost = msgspec.structs.replace(rig.instance, stages=(stage,))
    with answering(rig, lambda _: InstanceReady(lost)):
        response = post(rig, PLAIN)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "node_lost")


# -- the other routes


def test_models_are_listed_and_found_by_id_and_alias(client: openai.OpenAI) -> None:
    assert {"tiny", "smollm2-135m"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("tiny-chat").id == MODEL
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("organisation/tinny")
    assert caught.value.code == "model_not_found"


def test_health_tells_the_node_and_that_it_is_ready(rig: Rig) -> None:
    body = httpx.get(f"{rig.url}/health").json()
    assert (body["status"], body["node"], body["node_id"]) == ("ok", "rig", NODE_ID)
    assert eventually(lambda: httpx.get(f"{rig.url}/health").json()["ready"] is True)


def test_the_topology_names_nodes_and_their_layers(rig: Rig) -> None:
    body = httpx.get(f"{rig.url}/v1/topology").json()
    assert [node["name"] for node in body["nodes"]] == ["rig"]
    (stage,) = body["instances"][0]["stages"]
    assert (stage["node"], stage["start_layer"], stage["end_layer"]) == ("rig", 0, 4)
    assert stage["positions"] == POSITIONS


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/chat/completions", 405)])
def test_a_route_that_is_not_there_is_refused_in_the_usual_shape(rig: Rig, method: str, path: str, status: int) -> None:
    response = httpx.request(method, f"{rig.url}{path}")
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert (response.headers.get("allow") == "POST") == (status == 405)


# -- the process


def test_a_taken_port_ends_the_process_with_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = make_config(tmp_path, tmp_path, api_port=taken.getsockname()[1])
        process = start_gateway(config, tmp_path / "log")
        assert process.wait(WITHIN_S) == CANNOT_START
    last = (tmp_path / "log").read_text().strip().splitlines()[-1]
    assert "--api-port" in last
    assert process.stdin is not None
    process.stdin.close()


def test_a_restarted_gateway_keeps_its_address_and_one_told_to_stop_ends_its_answers(tmp_path: Path) -> None:
    with running_rig(tmp_path) as rig:
        rig.tell("Hello", end=False, silent=True)
        with raw_request(rig, stream=True):
            assert eventually(lambda: len(rig.stage.openings) == 1)
            begun = time.monotonic()
            assert stop_gateway(rig.gateway) == 0
            assert time.monotonic() - begun < 2.0
        assert rig.all_closed()
        rig.gateway = start_gateway(rig.config, tmp_path / "again.log")
        try:
            assert eventually(lambda: _answers(rig.url))
        finally:
            stop_gateway(rig.gateway)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_a_gateway_dies_with_the_process_that_holds_its_standard_input(tmp_path: Path) -> None:
    process = start_gateway(make_config(tmp_path, tmp_path), tmp_path / "log")
    assert eventually(lambda: (tmp_path / "api").exists())
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(WITHIN_S) == -signal.SIGKILL


def test_many_requests_at_a_time_leave_no_session_and_no_open_file_behind(rig: Rig) -> None:
    def ask() -> None:
        results.append(post(rig, PLAIN, timeout=60).json()["choices"][0]["message"]["content"])

    results: list[str] = []
    for _ in range(2):
        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        files = len(os.listdir(f"/proc/{rig.gateway.pid}/fd")) if Path("/proc").is_dir() else 0
    assert results == ["Hello world"] * 32
    assert files < 100
