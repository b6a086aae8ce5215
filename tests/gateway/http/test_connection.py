"""`gateway.http.connection` and `gateway.http.bodies`: very slow clients against a server with short deadlines."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gateway.http.bodies import BodyLimits, RequestBodies
from gateway.http.connection import MAX_CONNECTIONS, ConnectionLimits, max_connections
from gateway.http.json_response import JsonResponse
from tests.support.http import ERRORS, Served, error, one_answer, rest, serving, status, trickled
from tests.support.ring import eventually
from tests.support.stage import WITHIN_S

SHORT = ConnectionLimits(most=64, head_s=0.5, idle_s=1, drain_s=0.5, read_s=0.5)
BODY = BodyLimits(1000, together=2000, timeout_s=0.5, bytes_per_s=10)
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


def application(held: threading.Event) -> Starlette:
    bodies = RequestBodies(BODY)

    async def root(request: Request) -> Response:
        return JsonResponse({"ok": True})

    async def read(request: Request) -> Response:
        return JsonResponse({"bytes": len(await bodies.read(request))})

    async def hold(request: Request) -> Response:
        await asyncio.to_thread(held.wait, WITHIN_S)
        return JsonResponse({"held": True})

    async def flood(request: Request) -> Response:
        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * (1 << 16)
                await asyncio.sleep(0)  # a send to a client that is gone does not wait for anything

        return StreamingResponse(endless())

    routes = [Route("/", root), Route("/read", read, methods=["POST"]), Route("/hold", hold), Route("/flood", flood)]
    return Starlette(routes=routes, exception_handlers=ERRORS.handlers())


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(application(threading.Event()), SHORT) as served:
        yield served


# -- heads


def test_slow_request_head_times_out(served: Served) -> None:
    with served.connected(b"GET / HTTP/1.1\r\nx-slow: ") as client:
        answer = trickled(client)
    assert status(answer) == 408
    assert "in time" in error(answer)["message"]


def test_silent_connection_is_closed(served: Served) -> None:
    with served.connected() as client:
        assert rest(client) == b""


def test_second_head_has_the_same_deadline(served: Served) -> None:
    with served.connected(GET) as client:
        assert status(one_answer(client)) == 200
        client.sendall(b"GET / HTTP/1.1\r\nx-slow: ")
        assert status(trickled(client)) == 408


def test_idle_connection_is_kept_a_while_then_closed(served: Served) -> None:
    with served.connected(GET) as client:
        assert status(one_answer(client)) == 200
        client.sendall(GET)
        assert status(one_answer(client)) == 200
        assert rest(client) == b""


def test_endless_headers_are_refused(served: Served) -> None:
    with served.connected(b"GET / HTTP/1.1\r\n") as client:
        for number in range(33):
            client.sendall(b"x-%d: %s\r\n" % (number, b"v" * 1000))  # the last of them is too much
        answer = rest(client)
    assert status(answer) == 431
    assert "too large" in error(answer)["message"]


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nno colon here\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\r\n\r\n\r\n\r\n",
    ],
)
def test_invalid_http_gets_an_error_in_the_usual_shape(served: Served, data: bytes) -> None:
    with served.connected(data) as client:
        answer = rest(client)
    assert status(answer) == 400
    assert "HTTP/1.1" in error(answer)["message"]


# -- bodies


def posted(length: str) -> bytes:
    return f"POST /read HTTP/1.1\r\nhost: x\r\n{length}\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("head", "piece"), [("content-length: 900", b""), ("content-length: 900\r\nexpect: 100-continue", b"")]
)
def test_stalled_body_times_out(served: Served, head: str, piece: bytes) -> None:
    with served.connected(posted(head) + b"begun") as client:
        answer = rest(client).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").lstrip(b"\r\n")
    assert status(answer) == 408
    assert "did not come in time" in error(answer)["message"]


def test_steady_body_may_exceed_the_first_deadline(served: Served) -> None:
    with served.connected(posted("content-length: 100")) as client:
        answer = b""
        for _ in range(100):
            client.sendall(b"x")
            client.settimeout(0.01)
            try:
                answer += client.recv(1 << 16)
            except TimeoutError:
                continue
        client.settimeout(WITHIN_S)
        answer = one_answer(client, answer)
    assert (status(answer), b'"bytes":100' in answer) == (200, True)


@pytest.mark.parametrize("length", ["content-length: 99999999999", "content-length: 1001"])
def test_declared_oversized_body_is_refused_at_once(served: Served, length: str) -> None:
    with served.connected(posted(length)) as client:
        assert status(one_answer(client)) == 413
        assert trickled(client) == b""


def test_chunked_body_is_refused_once_too_large(served: Served) -> None:
    with served.connected(posted("transfer-encoding: chunked")) as client:
        for _ in range(11):
            client.sendall(b"64\r\n" + b"x" * 100 + b"\r\n")
        assert status(one_answer(client)) == 413
        assert trickled(client, b"1\r\nx\r\n") == b""


def test_bodies_together_are_bounded(served: Served) -> None:
    with served.connected(posted("content-length: 999")) as one, served.connected(posted("content-length: 999")) as two:
        for client in (one, two):
            client.sendall(b"x" * 998)
        with served.connected(posted("content-length: 9") + b"x" * 9) as small:
            assert status(one_answer(small)) == 503
        for client in (one, two):
            client.sendall(b"x")
            assert status(one_answer(client)) == 200
    with served.connected(posted("content-length: 9") + b"x" * 9) as later:
        assert status(one_answer(later)) == 200


def test_connection_survives_a_refused_body(served: Served) -> None:
    with served.connected(posted("content-length: 1001")) as client:
        assert status(one_answer(client)) == 413
        client.sendall(b"x" * 1001 + GET)
        assert status(one_answer(client)) == 200


@pytest.mark.parametrize("path", ["read", "flood"])
def test_invalid_chunk_ends_the_connection_without_a_log_line(
    served: Served, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    head = f"POST /{path} HTTP/1.1" if path == "read" else f"GET /{path} HTTP/1.1"
    with served.connected(f"{head}\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode()) as client:
        if path == "flood":
            assert client.recv(100)
        client.sendall(b"a secret that is no chunk\r\n")
        rest(client)
        assert eventually(lambda: not served.server.server_state.connections)
    assert "secret" not in caplog.text
    assert "Traceback" not in caplog.text


def test_disconnect_within_a_body_is_not_logged(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with served.connected(posted("content-length: 900") + b"begun"):
        assert eventually(lambda: bool(served.server.server_state.tasks))
    assert eventually(lambda: not served.server.server_state.tasks)
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]


# -- completions


def test_client_that_never_reads_is_aborted(served: Served) -> None:
    with served.connected(GET.replace(b"GET /", b"GET /flood")) as client:
        assert client.recv(100)
        assert eventually(lambda: not served.server.server_state.connections)
        assert eventually(lambda: not served.server.server_state.tasks)


# -- how many


def test_longest_idle_connection_is_aborted_at_the_limit() -> None:
    patient = ConnectionLimits(most=4, head_s=60, idle_s=60)
    with serving(application(threading.Event()), patient) as served:
        clients = [socket.create_connection(("127.0.0.1", served.port), timeout=WITHIN_S) for _ in range(4)]
        try:
            assert eventually(lambda: len(served.server.server_state.connections) == 4)
            clients[0].sendall(GET)
            assert status(one_answer(clients[0])) == 200
            with served.connected(GET) as fifth:
                assert status(one_answer(fifth)) == 200
                assert rest(clients[1]) == b""
                for kept in (clients[0], clients[2], clients[3]):
                    kept.sendall(GET)
                    assert status(one_answer(kept)) == 200
        finally:
            for client in clients:
                client.close()


def test_new_connection_is_closed_while_all_have_requests() -> None:
    held = threading.Event()
    with serving(application(held), ConnectionLimits(most=2)) as served:
        hold = GET.replace(b"GET /", b"GET /hold")
        with served.connected(hold) as one, served.connected(hold) as two:
            assert eventually(lambda: len(served.server.server_state.tasks) == 2)
            with served.connected() as third:
                assert rest(third) == b""
            held.set()
            assert [status(one_answer(client)) for client in (one, two)] == [200, 200]


def test_idle_connections_do_not_block_others() -> None:
    with serving(application(threading.Event()), ConnectionLimits(most=32, head_s=60)) as served:
        idle = [socket.create_connection(("127.0.0.1", served.port), timeout=WITHIN_S) for _ in range(300)]
        try:
            with served.connected(GET) as client:
                assert status(one_answer(client)) == 200
            assert eventually(lambda: len(served.server.server_state.connections) <= 32)
        finally:
            for client in idle:
                client.close()


def test_connection_limit_spares_file_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, most in (
        (1 << 20, MAX_CONNECTIONS),
        (1024, 768),
        (100, 64),
        (resource.RLIM_INFINITY, MAX_CONNECTIONS),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert max_connections() == most
