"""`gateway.openai.chat_completions` over real HTTP, a real bus and a real data plane, read by the official client."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter

from bus.client import RequestError
from bus.dataplane.frames import Flag
from bus.messages import (
    DownloadProgress,
    InstanceDown,
    InstanceEnsure,
    Reply,
    RequestCancel,
    SessionFinished,
    SessionToken,
    Status,
    Work,
)
from cluster.failures import FailureCode
from cluster.openings import SessionFailure
from models.templates.chat_template import ChatTemplate
from tests.support.gateway.chat import (
    MESSAGES,
    PLAIN,
    answering,
    chunks_of,
    held_up,
    post,
    raw_request,
    streamed_lines,
    text_of,
)
from tests.support.gateway.gateway_rig import (
    MODEL,
    NODE_ID,
    Rig,
    eventually,
)
from tests.support.gateway.text_stage import EPOCH

BROKEN = SessionFailure(FailureCode.ENGINE, "the engine ran out of memory")


# -- completions


def test_official_client_gets_a_completion(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert answer.choices[0].message.content == "Hello world"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_official_client_streams_the_same_text(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello world"


def test_official_stream_helper_works_with_usage(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=MESSAGES, stream_options={"include_usage": True}
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == "Hello world"
    assert final.usage is not None
    assert final.usage.completion_tokens > 0


def test_chunks_and_completion_fit_the_official_types(rig: Rig) -> None:
    for chunk in chunks_of(streamed_lines(rig, n=2, stream_options={"include_usage": True})):
        TypeAdapter(ChatCompletionChunk).validate_python(chunk, strict=True)
    TypeAdapter(ChatCompletion).validate_python(post(rig, PLAIN).json(), strict=True)


def test_stream_has_one_role_and_one_finish_chunk(rig: Rig) -> None:
    lines = streamed_lines(rig)
    chunks = chunks_of(lines)
    assert lines[-1] == "data: [DONE]"
    assert [c["choices"][0]["delta"].get("role") for c in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert len({(c["id"], c["created"], c["model"], c["system_fingerprint"]) for c in chunks}) == 1
    assert not any("usage" in c for c in chunks)


def test_requested_usage_comes_in_a_last_chunk(rig: Rig) -> None:
    chunks = chunks_of(streamed_lines(rig, stream_options={"include_usage": True}, seed=5))
    assert all(c["usage"] is None for c in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == len(rig.stage.script.tokens)
    assert (chunks[-1]["timings"]["seed"], chunks[-1]["timings"]["nodes"]) == (5, 1)


def test_stream_has_the_headers_that_proxies_need(rig: Rig) -> None:
    headers = post(rig, {**PLAIN, "stream": True}).headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")
    assert headers["x-request-id"].startswith("req_")


def test_chunks_are_ascii_with_whole_characters(rig: Rig) -> None:
    rig.set_script("thé 日本 \u2028 🙂")
    lines = streamed_lines(rig)
    assert text_of(chunks_of(lines)) == "thé 日本 \u2028 🙂"
    assert all(line.isascii() for line in lines)
    assert "\ufffd" not in text_of(chunks_of(lines))


def test_unfinished_character_ends_in_a_replacement(rig: Rig) -> None:
    rig.set_script("né")
    assert post(rig, {**PLAIN, "max_tokens": 2}).json()["choices"][0]["message"]["content"] == "n\ufffd"


def test_token_limit_ends_the_text(rig: Rig) -> None:
    choice = post(rig, {**PLAIN, "max_tokens": 3}).json()
    assert choice["choices"][0]["finish_reason"] == "length"
    assert choice["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("stream", [False, True])
def test_stop_string_over_several_tokens_ends_the_session(rig: Rig, stream: bool) -> None:
    rig.set_script("before STOP after", end=False, silent=True)
    if stream:
        chunks = chunks_of(streamed_lines(rig, stop=["STOP"]))
        text, reason = text_of(chunks), chunks[-1]["choices"][0]["finish_reason"]
    else:
        choice = post(rig, {**PLAIN, "stop": "STOP"}).json()["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert (text, reason) == ("before ", "stop")


def test_choices_are_sessions_with_consecutive_seeds(rig: Rig) -> None:
    known = set(rig.stage.openings)
    chunks = chunks_of(streamed_lines(rig, n=3, seed=2**64 - 1))
    assert [text_of(chunks, choice) for choice in range(3)] == ["Hello world"] * 3
    seeds = [opening.sampling.seed for session, opening in rig.stage.openings.items() if session not in known]
    assert sorted(seeds) == [0, 1, 2**64 - 1]


def test_sampling_options_override_the_card(rig: Rig) -> None:
    post(rig, {**PLAIN, "temperature": 0, "top_k": 5, "min_p": 0.125, "seed": 9})
    sampling = list(rig.stage.openings.values())[-1].sampling
    assert (sampling.temperature, sampling.top_k, sampling.min_p, sampling.seed) == (0.0, 5, 0.125, 9)
    assert sampling.top_p == 0.75  # the card's


def test_stage_receives_the_rendered_template(rig: Rig) -> None:
    post(rig, PLAIN)
    opening = list(rig.stage.openings.values())[-1]
    assert isinstance(rig.tokenizer.chat_template, ChatTemplate)
    rendered = rig.tokenizer.chat_template.render(MESSAGES)
    assert list(opening.prompt) == rig.tokenizer.encode(rendered)
    assert opening.first_position == len(opening.prompt)
    assert opening.eos == rig.tokenizer.eos_token_ids
    assert opening.vocabulary == rig.tokenizer.vocabulary


def test_frames_carry_the_epoch_and_consecutive_numbers(rig: Rig) -> None:
    post(rig, PLAIN)
    assert rig.stage.epochs == {EPOCH}
    assert rig.stage.sequences == list(range(1, len(rig.stage.sequences) + 1))


def test_repeated_token_counts_once(rig: Rig) -> None:
    rig.set_script("Hello world", twice=True)
    assert post(rig, PLAIN).json()["choices"][0]["message"]["content"] == "Hello world"


@pytest.mark.parametrize("at_once", [2, 3, 64])
@pytest.mark.parametrize("twice", [False, True])
def test_tokens_sharing_a_frame_give_equal_text(rig: Rig, at_once: int, twice: bool) -> None:
    rig.set_script("Hello world", at_once=at_once, twice=twice)
    answer = post(rig, PLAIN).json()
    assert answer["choices"][0]["message"]["content"] == "Hello world"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len(rig.stage.script.tokens)


def test_token_limit_within_a_frame_ends_the_text(rig: Rig) -> None:
    rig.set_script("Hello world", at_once=3)
    answer = post(rig, {**PLAIN, "max_tokens": 4}).json()
    assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 4)


@pytest.mark.parametrize(
    ("flags", "payload"),
    [
        (Flag.FAILED, b"no message pack"),
        (Flag.FAILED, msgspec.msgpack.encode({"code": 5})),
        (Flag.FAILED, b""),
        (Flag.QUEUE_POSITION, np.array([1], np.int32)),
        (Flag.QUEUE_POSITION, np.array([-1, 0], np.int32)),
        (Flag.QUEUE_POSITION, np.array([1, 0], np.float32)),
        (Flag.TOKEN, np.empty(0, np.int32)),
        (Flag.TOKEN, np.array([[1, 2]], np.int32)),
        (Flag.STORE, b"x"),
    ],
)
def test_malformed_frame_does_not_stop_the_text(rig: Rig, flags: int, payload: bytes | npt.NDArray[np.generic]) -> None:
    rig.set_script("Hello world", malformed=[(flags, payload)])
    assert post(rig, PLAIN).json()["choices"][0]["message"]["content"] == "Hello world"


def test_cached_tokens_are_in_usage_and_timings(rig: Rig) -> None:
    rig.set_script("Hello world", cached=4)
    whole = post(rig, PLAIN).json()
    assert whole["usage"]["prompt_tokens_details"]["cached_tokens"] == 4
    assert (whole["timings"]["cache_n"], whole["timings"]["prompt_n"]) == (4, whole["usage"]["prompt_tokens"] - 4)
    streamed = chunks_of(streamed_lines(rig, n=2, stream_options={"include_usage": True}))[-1]
    assert streamed["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    assert streamed["usage"]["prompt_tokens_details"]["cached_tokens"] == 4


def test_observers_receive_tokens_but_never_the_prompt(rig: Rig) -> None:
    rig.node.received.clear()
    post(rig, {**PLAIN, "messages": [{"role": "user", "content": "a secret"}]})
    session = f"{list(rig.stage.openings)[-1]:016x}"
    assert eventually(lambda: any(isinstance(m, SessionFinished) and m.session == session for m in rig.node.received))
    tokens = [m for m in rig.node.received if isinstance(m, SessionToken) and m.session == session]
    assert "".join(m.text for m in tokens) == "Hello world"
    assert [m.index for m in tokens] == list(range(len(rig.stage.script.tokens)))
    assert "secret" not in repr(rig.node.received)


# -- waiting


def test_waiting_stream_shows_progress(rig: Rig) -> None:
    with held_up(rig), raw_request(rig, stream=True) as connection:
        response = connection.getresponse()  # the response begins with the first sign of life
        assert response.readline().startswith(b": exobus loading tiny")
        rig.download.publish(DownloadProgress(MODEL, NODE_ID, 40, 100))
        assert eventually(lambda: response.readline() == b": exobus downloading tiny: 40 %\n")
        rig.download.publish(Status(MODEL, "placing it"))
        assert eventually(lambda: response.readline() == b": exobus placing it\n")
        rig.node.answering.set()
        assert text_of(chunks_of(response.read().decode().split("\n"))) == "Hello world"


def test_queued_stream_shows_how_many_are_ahead(rig: Rig) -> None:
    rig.set_script("Hello world", ahead=[5, 3], cached=0)
    with raw_request(rig, stream=True, stream_options={"include_usage": True}) as connection:
        response = connection.getresponse()
        assert response.readline() == b": exobus 3 answers are ahead of yours\n"
        rig.stage.script.admitted.set()
        chunks = chunks_of(response.read().decode().split("\n"))
    assert text_of(chunks) == "Hello world"
    timings = chunks[-1]["timings"]
    assert timings["queued_ms"] > timings["prompt_ms"]


def test_queued_stream_does_not_show_progress_of_loading(rig: Rig) -> None:
    rig.set_script("Hello world", ahead=[3], cached=0)
    with raw_request(rig, stream=True) as connection:
        response = connection.getresponse()
        assert response.readline() == b": exobus 3 answers are ahead of yours\n"
        rig.download.publish(Status(MODEL, "placing it on one more node"))
        assert response.readline() == b"\n"
        assert [response.readline(), response.readline()] == [b": exobus 3 answers are ahead of yours\n", b"\n"]
        rig.stage.script.admitted.set()
        assert "one more node" not in response.read().decode()


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_in_the_queue_ends_the_session(rig: Rig, stream: bool) -> None:
    rig.set_script("Hello world", ahead=[3])
    opened = len(rig.stage.openings)
    with raw_request(rig, stream=stream):
        assert eventually(lambda: len(rig.stage.openings) == opened + 1)
    assert eventually(lambda: len(rig.stage.closed) == opened + 1)


def test_failure_after_a_comment_goes_into_the_stream(rig: Rig) -> None:
    def too_large(work: Work) -> Reply:
        raise RequestError(FailureCode.INSUFFICIENT_MEMORY, "it needs 9 GB")

    with answering(rig, too_large), held_up(rig), raw_request(rig, stream=True) as connection:
        response = connection.getresponse()
        rig.node.answering.set()
        lines = response.read().decode().split("\n")
    (error,) = chunks_of(lines)
    assert error["error"]["message"] == "it needs 9 GB"
    assert "data: [DONE]" not in lines


# -- leaving


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_ends_the_session(rig: Rig, stream: bool) -> None:
    rig.set_script("Hello", end=False, silent=True)
    opened = len(rig.stage.openings)
    with raw_request(rig, stream=stream):
        assert eventually(lambda: len(rig.stage.openings) == opened + 1)
        assert len(rig.stage.closed) == opened
    assert eventually(lambda: len(rig.stage.closed) == opened + 1)


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_before_any_token_ends_all_sessions(rig: Rig, stream: bool) -> None:
    rig.stage.script.tokens = []
    opened = len(rig.stage.openings)
    with raw_request(rig, stream=stream, n=4):
        assert eventually(lambda: len(rig.stage.openings) == opened + 4)
    assert eventually(lambda: len(rig.stage.closed) == opened + 4)


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_during_loading_opens_no_session(rig: Rig, stream: bool) -> None:
    opened = len(rig.stage.openings)
    rig.node.received.clear()
    with held_up(rig):
        with raw_request(rig, stream=stream):
            assert eventually(lambda: any(isinstance(m, InstanceEnsure) for m in rig.node.received))
        assert eventually(lambda: any(isinstance(m, RequestCancel) for m in rig.node.received))
    assert post(rig, PLAIN).status_code == 200
    assert len(rig.stage.openings) == opened + 1


# -- failures of the ring


@pytest.mark.parametrize(("wait_s", "header"), [(0, "2"), (1, "1")])
def test_failure_before_the_first_token_is_retryable(rig: Rig, wait_s: int, header: str) -> None:
    rig.set_script("", end=False, failure=msgspec.structs.replace(BROKEN, retry_after_s=wait_s))
    response = post(rig, {**PLAIN, "stream": True})
    assert (response.status_code, response.headers["retry-after"]) == (503, header)
    assert response.json()["error"]["message"] == "the engine ran out of memory"


def test_later_failure_leaves_no_finish_reason(rig: Rig, client: openai.OpenAI) -> None:
    rig.set_script("Hello", end=False, failure=BROKEN)
    lines = streamed_lines(rig)
    *chunks, last = chunks_of(lines)
    assert text_of(chunks) == "Hello"
    assert all(c["choices"][0]["finish_reason"] is None for c in chunks)
    assert last["error"]["message"] == "the engine ran out of memory"
    assert lines[-1] != "data: [DONE]"
    with pytest.raises(openai.APIError, match="ran out of memory"):
        list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))


def test_lost_token_fails_the_request(rig: Rig) -> None:
    rig.set_script("Hello world", lost=3)
    response = post(rig, PLAIN)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "token_lost"


def test_sessions_end_when_their_instance_goes_down(rig: Rig) -> None:
    rig.set_script("Hello", end=False, silent=True)
    opened = len(rig.stage.openings)
    with raw_request(rig, stream=True) as connection:
        assert eventually(lambda: len(rig.stage.openings) == opened + 1)
        response = connection.getresponse()
        rig.node.publish(InstanceDown(rig.instance.instance_id, EPOCH, "engine-1 ended"))
        *_, last = chunks_of(response.read().decode().split("\n"))
    assert last["error"]["code"] == "node_lost"
    assert "engine-1 ended" in last["error"]["message"]
