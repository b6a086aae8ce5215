"""`gateway.http.bodies`: very slow, large and many bodies."""

from __future__ import annotations

import logging

import pytest

from tests.support.gateway.gateway_rig import eventually
from tests.support.gateway.http import GET, Served, error, one_answer, rest, status, trickled
from tests.support.gateway.text_stage import WITHIN_S


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
        with served.connected(posted("content-length: 99") + b"x" * 99) as third:
            assert status(one_answer(third)) == 503
        for client in (one, two):
            client.sendall(b"x")
            assert status(one_answer(client)) == 200
    with served.connected(posted("content-length: 9") + b"x" * 9) as later:
        assert status(one_answer(later)) == 200


def test_small_body_passes_beside_large_ones(served: Served) -> None:
    with served.connected(posted("content-length: 999")) as one, served.connected(posted("content-length: 999")) as two:
        for client in (one, two):
            client.sendall(b"x" * 998)
        with served.connected(posted("content-length: 10") + b"x" * 10) as small:
            assert status(one_answer(small)) == 200


def test_connection_survives_a_refused_body(served: Served) -> None:
    with served.connected(posted("content-length: 1001")) as client:
        assert status(one_answer(client)) == 413
        client.sendall(b"x" * 1001 + GET)
        assert status(one_answer(client)) == 200


def test_disconnect_within_a_body_is_not_logged(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with served.connected(posted("content-length: 900") + b"begun"):
        assert eventually(lambda: bool(served.server.server_state.tasks))
    assert eventually(lambda: not served.server.server_state.tasks)
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]
