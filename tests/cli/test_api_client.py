"""The client of the HTTP API against servers that send raw bytes."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cli import api_client
from cli.api_client import Api, ApiRefused, ApiUnreachable, get, stream

WITHIN_S = 10.0


@contextmanager
def server(answer: bytes) -> Iterator[Api]:
    """Run a server that sends this to one client and closes the connection."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(answer)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):  # unread bytes of the request would reset the connection
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WITHIN_S)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Api(f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            thread.join(WITHIN_S)


def ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + body


@pytest.mark.parametrize("text", ["a\u2028b", "a\x85b", "a\u2029b"])
def test_unicode_line_ends_stay_inside_a_chunk(text: str) -> None:
    chunk = json.dumps({"text": text}, ensure_ascii=False)
    body = f": waiting\r\n\ndata: {chunk}\n\ndata: [DONE]\n\n".encode()
    with server(ok(body)) as api:
        assert list(stream(api, "/", {})) == ["waiting", {"text": text}]


def test_stream_that_ends_early_is_refused() -> None:
    with server(ok(b'data: {"a": 1}\n\n')) as api:
        chunks = stream(api, "/", {})
        assert next(chunks) == {"a": 1}
        with pytest.raises(ApiRefused, match="ended too early"):
            next(chunks)


def test_error_in_a_stream_keeps_its_sentence() -> None:
    with server(ok(b'data: {"error": {"message": "no room"}}\n\n')) as api, pytest.raises(ApiRefused, match="no room"):
        list(stream(api, "/", {}))


@pytest.mark.parametrize("body", [b"[]", b"<html>", b"\xff\xfe"])
def test_answer_that_is_no_object_is_refused(body: bytes) -> None:
    with server(ok(body)) as api, pytest.raises(ApiRefused, match="not a JSON object"):
        get(api, "/")


def test_error_without_a_sentence_is_its_status() -> None:
    with (
        server(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\n\r\noops") as api,
        pytest.raises(ApiRefused, match="HTTP 502 Bad Gateway; is this the address of a node"),
    ):
        get(api, "/")


def test_endless_answers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_client, "MAX_BYTES", 1000)
    with server(ok(b"x" * 5000)) as api, pytest.raises(ApiRefused, match="the answer is too long"):
        get(api, "/")
    with server(ok(b"x" * 5000)) as api, pytest.raises(ApiRefused, match="a line of the answer is too long"):
        list(stream(api, "/", {}))


def test_server_that_speaks_no_http_is_unreachable() -> None:
    with server(b"SSH-2.0-OpenSSH_9.2\r\n") as api, pytest.raises(ApiUnreachable, match="is it a node"):
        get(api, "/")


def test_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with server(ok(b"{}")) as api:
        assert get(api, "/") == {}
