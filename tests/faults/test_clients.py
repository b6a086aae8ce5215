"""What the clients of fault runs report of a gateway that ends a stream, breaks, stays silent or answers wrongly."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.faults.clients import Asker, Stream
from tests.faults.seen import AnswerSeen, End, StreamSeen

WHOLE = "abc"
WITHIN_S = 10.0
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error": {"code": "node_lost", "message": "node first is gone; try again"}}\n\n'


def piece(text: str) -> bytes:
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n".encode()


@contextmanager
def gateway(*bodies: bytes, status: int = 200, silent: bool = False) -> Iterator[str]:
    """Serve the bodies one after the other, the last one again and again. A silent one does not end its responses."""
    left, over = list(bodies), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status if len(left) == 1 else 503)
            self.end_headers()
            self.wfile.write(left.pop(0) if len(left) > 1 else left[0])
            self.wfile.flush()
            if silent:
                over.wait(WITHIN_S)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            over.set()
            server.shutdown()
            thread.join()


def streamed(api: str, give_up_s: float = WITHIN_S) -> StreamSeen:
    begun_at = time.monotonic()
    stream = Stream(api, lambda do: do(), {}, give_up_s)
    assert stream.over.wait(WITHIN_S)
    return stream.seen(begun_at, WHOLE)


@pytest.mark.parametrize(
    ("body", "end"),
    [
        (piece("ab") + piece("c") + DONE, End.COMPLETE),
        (b": exobus loading\n\n" + piece("ab") + ERROR, End.ERROR),
        (piece("ab"), End.CUT),
        (piece("ax") + ERROR, End.WRONG),
        (piece("ab") + DONE, End.WRONG),
    ],
)
def test_stream_reports_its_end(body: bytes, end: End) -> None:
    with gateway(body) as api:
        assert streamed(api).end is end


def test_error_of_a_stream_has_code_and_sentence() -> None:
    with gateway(ERROR) as api:
        assert streamed(api).sentence == "node_lost: node first is gone; try again"


def test_stream_that_stays_silent_is_given_up() -> None:
    with gateway(piece("ab"), silent=True) as api:
        seen = streamed(api, 0.3)
        assert seen.end is End.SILENT
        assert 0.3 <= seen.after_s < WITHIN_S


def test_stream_that_goes_on_is_not_silent() -> None:
    with gateway(piece("ab"), silent=True) as api:
        stream = Stream(api, lambda do: do(), {}, WITHIN_S)
        while stream.text != "ab":
            assert not stream.over.wait(0.01)
        assert stream.seen(time.monotonic(), WHOLE).end is End.RUNNING
        stream.leave()
        assert stream.over.wait(WITHIN_S)


def answer(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def asked(api: str, wait_s: float = WITHIN_S) -> AnswerSeen:
    since = time.monotonic()
    asker = Asker(api, lambda do: do(), {}, "good", since, since + wait_s)
    assert asker.over.wait(WITHIN_S)
    return asker.seen(since)


def test_question_is_repeated_until_it_is_answered() -> None:
    refused = json.dumps({"error": {"message": "no actor"}}).encode()
    with gateway(refused, refused, answer("good")) as api:
        seen = asked(api)
    assert (seen.failures, seen.sentence, seen.wrong) == (2, "503 no actor", False)
    assert seen.after_s is not None
    assert 0.6 <= seen.after_s < WITHIN_S


def test_wrong_answer_ends_the_questions() -> None:
    with gateway(answer("bad")) as api:
        assert asked(api).wrong


def test_question_without_an_answer_is_given_up() -> None:
    with gateway(b"", silent=True) as api:
        assert asked(api, 0.5).after_s is None
