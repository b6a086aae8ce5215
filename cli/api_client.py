"""The node's HTTP API as the commands use it: JSON and server-sent events over the standard library."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, NamedTuple
from urllib.parse import urlsplit

CONNECT_WITHIN_S = 5.0
ANSWER_WITHIN_S = 3600.0  # a first download may come before the answer


class Api(NamedTuple):
    """A gateway's URL, and the key that it is shown (empty: none)."""

    url: str
    key: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """What every request to it carries."""
        authorization = {"authorization": f"Bearer {self.key}"} if self.key else {}
        return {"content-type": "application/json", **authorization}


class ApiUnreachable(Exception):
    """Nobody answers there; the message says what to do."""


class ApiRefused(Exception):
    """The gateway said no; the message is its own sentence."""


def get(api: Api, path: str) -> dict[str, Any]:
    """A JSON object. Raises ApiUnreachable or ApiRefused."""
    with _answer(api, "GET", path, None) as response:
        return _object(response.read())


def post(api: Api, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Send JSON, get a JSON object. Raises ApiUnreachable or ApiRefused."""
    with _answer(api, "POST", path, body) as response:
        return _object(response.read())


def stream(api: Api, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any] | str]:
    """Send JSON; then chunks as objects and signs of life as text. Raises ApiUnreachable or ApiRefused."""
    with _answer(api, "POST", path, body) as response:
        for line in response:
            text = line.decode().rstrip("\r\n")
            if text.startswith(":"):
                yield text[1:].strip()
            elif text == "data: [DONE]":
                return
            elif text.startswith("data: "):
                yield _chunk(text.removeprefix("data: "))
    raise ApiRefused("the answer broke off; the node's logs say more")


@contextmanager
def _answer(api: Api, method: str, path: str, body: Mapping[str, Any] | None) -> Iterator[HTTPResponse]:
    connection = _connect(api.url)
    try:
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, api.headers)
        response = connection.getresponse()
        if response.status == 401:
            raise ApiRefused(_locked(api))
        if response.status >= 400:
            raise ApiRefused(_sentence(response))
        yield response
    except (OSError, HTTPException) as error:
        raise ApiUnreachable(
            f"the connection to {api.url} broke ({error or type(error).__name__}); is it a node?"
        ) from None
    finally:
        connection.close()


def _connect(url: str) -> HTTPConnection:
    parts = urlsplit(url)
    try:
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=CONNECT_WITHIN_S)
        connection.connect()
    except (OSError, ValueError, HTTPException):
        raise ApiUnreachable(f"no node answers at {url}; start one with `exobus node`, or pass --api URL") from None
    connection.sock.settimeout(ANSWER_WITHIN_S)
    return connection


def _locked(api: Api) -> str:
    if api.key:
        return f"the gateway at {api.url} does not know this API key; pass another --api-key, or set EXOBUS_API_KEY"
    return f"the gateway at {api.url} wants an API key; pass --api-key, or set EXOBUS_API_KEY"


def _sentence(response: HTTPResponse) -> str:
    data = response.read()
    try:
        return str(json.loads(data)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status} {response.reason}; is this the address of a node?"


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ApiRefused("the answer is no JSON object; is this the address of a node?")
    return value


def _chunk(text: str) -> dict[str, Any]:
    chunk = _object(text.encode())
    if "error" in chunk:
        raise ApiRefused(str(chunk["error"].get("message", "the answer failed")))
    return chunk
