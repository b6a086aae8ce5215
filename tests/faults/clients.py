"""The clients of a fault run: one that reads a stream, and one that asks until it gets a good answer.

Each runs on a thread of its own, which does all its waiting with a deadline.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

from tests.faults.seen import AnswerSeen, End, StreamSeen

ASK_EVERY_S = 0.3
HUNG_S = 5.0  # without an answer or an event of a stream; less says nothing
FLOWING = 60  # lines of a stream, which are some 30 tokens; then traffic counts as flowing
PATH = "/v1/chat/completions"
NO_ANSWER = "no answer"
FAILED = (OSError, HTTPException, json.JSONDecodeError)

Inside = Callable[[Callable[[], None]], None]
"""Calls a function in the network of a node."""


def connection(api: str, timeout_s: float) -> HTTPConnection:
    """Return a connection to a gateway, each of whose waits takes `timeout_s` at most."""
    return HTTPConnection(urlsplit(api).netloc, timeout=max(timeout_s, 0.1))


def post(to: HTTPConnection, body: dict[str, Any]) -> HTTPResponse:
    """Send a chat request, and return the response once it begins. Raises OSError or HTTPException."""
    to.request("POST", PATH, json.dumps(body), {"content-type": "application/json", "connection": "close"})
    return to.getresponse()


class Stream:
    """Reads a streamed chat to its end, and at most until `give_up_s` from now."""

    def __init__(self, api: str, inside: Inside, body: dict[str, Any], give_up_s: float) -> None:
        self.flowing = threading.Event()
        self.over = threading.Event()
        self._ended_at = self._event_at = 0.0
        self._wire: socket.socket | None = None
        self._pieces: list[str] = []
        self._end = End.CUT
        self._sentence = ""
        self._until = time.monotonic() + give_up_s
        self._request = api, body
        threading.Thread(target=inside, args=(self._run,), daemon=True).start()

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._pieces)

    @property
    def complete(self) -> bool:
        """Whether the stream ran to its end."""
        return self.over.is_set() and self._end is End.COMPLETE

    def seen(self, begun_at: float, whole: str) -> StreamSeen:
        """Return what was seen since the fault, which began at a monotonic time; `whole` is the undisturbed text."""
        if not self.over.is_set():
            self._ended_at = time.monotonic()
            self._end = End.SILENT if self._ended_at - self._event_at > HUNG_S else End.RUNNING
        right = self.text == whole if self._end is End.COMPLETE else whole.startswith(self.text)
        return StreamSeen(self._end if right else End.WRONG, max(self._ended_at - begun_at, 0.0), self._sentence)

    def leave(self) -> None:
        """Disconnect, if the stream is not over."""
        with suppress(OSError):
            if self._wire and not self.over.is_set():
                self._wire.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        api, body = self._request
        to = connection(api, self._until - time.monotonic())
        try:
            to.connect()
            self._wire = wire = to.sock  # the connection forgets it once the response has begun
            with post(to, body) as response:
                self._read(response, wire)
        except TimeoutError:
            self._end = End.SILENT
        except FAILED as error:
            self._sentence = f"{type(error).__name__}: {error}"
        finally:
            self._ended_at = time.monotonic()
            to.close()
            self.over.set()

    def _read(self, response: HTTPResponse, wire: socket.socket) -> None:
        """Read lines to the end of the stream. Raises TimeoutError if it does not end in time."""
        for number, line in enumerate(iter(response.readline, b"")):
            if line.startswith(b"data: "):  # and not a comment that keeps the connection alive
                self._event_at = time.monotonic()
            if number == FLOWING:
                self.flowing.set()
            if not self._goes_on(line):
                return
            wire.settimeout(max(self._until - time.monotonic(), 0.01))

    def _goes_on(self, line: bytes) -> bool:
        """Take a line of the stream. Returns False if it is the last."""
        if line.startswith(b"data: [DONE]"):
            self._end = End.COMPLETE
            return False
        event = json.loads(line[6:]) if line.startswith(b"data: {") else {"choices": []}
        if error := event.get("error"):
            self._end, self._sentence = End.ERROR, f"{error['code']}: {error['message']}"
            return False
        self._pieces += (choice["delta"].get("content") or "" for choice in event["choices"])
        return True


class Asker:
    """Asks a question again and again, from `first_at` (monotonic) until a good answer comes or `until`."""

    def __init__(
        self, api: str, inside: Inside, body: dict[str, Any], good: str, first_at: float, until: float
    ) -> None:
        self.over = threading.Event()
        self._request = api, body
        self._good = good
        self._first_at, self._until = first_at, until
        self._answered_at: float | None = None
        self._failures = 0
        self._sentence = ""
        self._wrong = False
        threading.Thread(target=inside, args=(self._run,), daemon=True).start()

    def seen(self, since: float) -> AnswerSeen:
        """Return what was seen, in seconds since a monotonic time."""
        after = None if self._answered_at is None else self._answered_at - since
        return AnswerSeen(after, self._until - since, self._failures, self._sentence, self._wrong)

    def _run(self) -> None:
        at = self._first_at
        try:
            while at < self._until and self._answered_at is None:
                threading.Event().wait(max(at - time.monotonic(), 0.0))
                at = max(at + ASK_EVERY_S, time.monotonic())
                self._ask()
        finally:
            self.over.set()

    def _ask(self) -> None:
        sent = time.monotonic()
        status, text = ask(*self._request, self._until - sent)
        now = time.monotonic()
        if status == 200:
            self._answered_at, self._wrong = now, text != self._good
        elif text != NO_ANSWER or now - sent > HUNG_S:
            self._failures += 1
            self._sentence = f"{NO_ANSWER} in {now - sent:.0f} s" if text == NO_ANSWER else text


def ask(api: str, body: dict[str, Any], timeout_s: float) -> tuple[int, str]:
    """Return the status of a chat without a stream, and its text or the sentence of its error; 0 if none came."""
    to = connection(api, timeout_s)
    try:
        response = post(to, body)
        answer = json.loads(response.read())
        if response.status == 200:
            return 200, str(answer["choices"][0]["message"]["content"])
        return response.status, f"{response.status} {answer['error']['message']}"
    except TimeoutError:
        return 0, NO_ANSWER
    except FAILED as error:
        return 0, type(error).__name__
    finally:
        to.close()
