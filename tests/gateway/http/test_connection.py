"""`gateway.http.connection`: very slow clients against a server with short deadlines."""

from __future__ import annotations

import logging
import resource
import socket
import threading

import pytest

from gateway.http.connection import MAX_CONNECTIONS, ConnectionLimits, max_connections
from tests.support.gateway.gateway_rig import eventually
from tests.support.gateway.http import GET, Served, application, error, one_answer, rest, serving, status, trickled
from tests.support.gateway.text_stage import WITHIN_S

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
def test_invalid_http_gets_the_usual_error(served: Served, data: bytes) -> None:
    with served.connected(data) as client:
        answer = rest(client)
    assert status(answer) == 400
    assert "HTTP/1.1" in error(answer)["message"]


@pytest.mark.parametrize("path", ["read", "flood"])
def test_invalid_chunk_ends_the_connection_unlogged(
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
