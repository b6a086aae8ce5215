"""`gateway.core.redaction`: no prompt and no key is in any log, whatever fails. A real gateway that logs all it can."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from gateway.core.redaction import describe
from tests.gateway.http.test_api_keys import key_file
from tests.support.gateway.broken_gateway import PLACES
from tests.support.gateway.chat import PLAIN
from tests.support.gateway.gateway_rig import Rig, eventually, running_rig
from tests.support.gateway.http import rest
from tests.support.gateway.text_stage import WITHIN_S

PROMPT, KEY, WRONG = "xyzzy-the-prompt", "xyzzy-right-key-0123", "xyzzy-wrong-key-0123"
MARK = "xyzzy"
HEAD = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs") / "gateway.log"


@pytest.fixture(scope="module")
def rig(log: Path) -> Iterator[Rig]:
    keys = key_file(log.parent, KEY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXOBUS_LOG", "NOTSET")
        with running_rig(log.parent, "tests.support.gateway.broken_gateway", api_keys=str(keys)) as rig:
            rig.set_script(f"Hello {MARK}")
            yield rig


def ask(rig: Rig, body: object, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{rig.url}/v1/chat/completions", content=content, headers={**HEAD, **headers}, timeout=WITHIN_S)


def chat_with(text: str, **fields: object) -> dict[str, object]:
    return {**PLAIN, "messages": [{"role": "user", "content": f"{PROMPT} {text}"}], **fields}


def raw(rig: Rig, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", urlsplit(rig.url).port or 0), timeout=WITHIN_S) as client:
        client.sendall(data)
        return rest(client)


def test_successful_requests_are_not_quoted_in_the_log(rig: Rig, log: Path) -> None:
    assert MARK in ask(rig, chat_with("hello")).text
    assert ask(rig, chat_with("hello", stream=True)).status_code == 200
    assert MARK not in log.read_text()


@pytest.mark.parametrize(
    "body",
    [
        b'{"xyzzy-the-prompt',
        b"\xffxyzzy-the-prompt",
        {**PLAIN, PROMPT: 1},
        {**PLAIN, "model": PROMPT},
        {**PLAIN, "tools": [PROMPT]},
        {**PLAIN, "messages": [{"role": PROMPT, "content": PROMPT}]},
        {**PLAIN, "messages": [{"role": "user", "content": [{"type": PROMPT}]}]},
        chat_with("x" * 4000),
    ],
    ids=str,
)
def test_refused_requests_are_not_quoted_in_the_log(rig: Rig, log: Path, body: object) -> None:
    assert 400 <= ask(rig, body).status_code < 500
    assert MARK not in log.read_text()


def test_refused_keys_are_not_in_the_log(rig: Rig, log: Path) -> None:
    assert ask(rig, PLAIN, authorization=f"Bearer {WRONG}").status_code == 401
    assert ask(rig, PLAIN, **{"x-api-key": WRONG}).status_code == 401
    assert MARK not in log.read_text()


@pytest.mark.parametrize(
    "data",
    [
        f"GET / HTTP/1.1\r\nauthorization: Bearer {KEY}\r\nno colon {MARK}\r\n\r\n",
        f"GET /{MARK}\x01 HTTP/1.1\r\nauthorization: Bearer {KEY}\r\n\r\n",
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n{PROMPT}\r\n",
        f"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\n{PROMPT}\r\n",
        f"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: upgrade\r\nupgrade: {MARK}\r\n"
        f"connection: close\r\nx-api-key: {KEY}\r\n\r\n",
    ],
)
def test_invalid_http_is_not_in_the_log(rig: Rig, log: Path, data: str) -> None:
    assert raw(rig, data.encode())
    assert MARK not in log.read_text()


@pytest.mark.parametrize("place", PLACES)
def test_internal_faults_are_logged_without_their_messages(rig: Rig, log: Path, place: str) -> None:
    before = log.read_text().count("ValueError at")
    response = ask(rig, chat_with(place))
    assert response.status_code == (500 if place in PLACES[:2] else 200)
    assert set(response.json().get("error", {"message", "type", "param", "code"})) == {
        "message",
        "type",
        "param",
        "code",
    }
    assert eventually(lambda: log.read_text().count("ValueError at") > before)
    text = log.read_text()
    assert "broken_gateway.py" in text
    assert "KeyError at" in text
    assert MARK not in text


def test_description_has_types_and_places_but_no_messages() -> None:
    try:
        try:
            raise KeyError("words")
        except KeyError:
            raise ExceptionGroup("words", [ValueError("words"), OSError(2, "words")]) from None
    except ExceptionGroup as error:
        text = describe(error)
    assert text.startswith("ExceptionGroup at test_redaction.py:")
    assert "ValueError" in text
    assert "FileNotFoundError" in text
    assert "KeyError" not in text
    assert "words" not in text.replace("no_words", "")
