"""The client of a gateway's HTTP API for the commands: JSON and server-sent events, bounded and with deadlines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 3600.0  # a first download may come before the answer
MAX_BYTES = 64 << 20  # of a JSON answer, or of one line of a stream


class Api(NamedTuple):
    """The URL of a gateway, and the API key for it (empty: none)."""

    url: str
    key: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request."""
        authorization = {"authorization": f"Bearer {self.key}"} if self.key else {}
        return {"content-type": "application/json", **authorization}


class ApiUnreachable(Exception):
    """No gateway answers; the message says what to do."""


class ApiRefused(Exception):
    """The gateway refused the request, or the answer failed; the message is the gateway's sentence."""


def model_path(name: str) -> str:
    """Return the path of a model by an id, alias or name of the hub, in which slashes stay."""
    return f"/v1/models/{quote(name, safe='/:@')}"


def get(api: Api, path: str) -> dict[str, Any]:
    """Get a JSON object. Raises ApiUnreachable or ApiRefused."""
    with _response(api, "GET", path, None) as response:
        return _object(_body(response))


def post(api: Api, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Send JSON and get a JSON object. Raises ApiUnreachable or ApiRefused."""
    with _response(api, "POST", path, body) as response:
        return _object(_body(response))


def stream(api: Api, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any] | str]:
    """Send JSON; yield the chunks of the answer as objects, and comments between them as text.

    Raises ApiUnreachable or ApiRefused, also in the middle of the answer.
    """
    with _response(api, "POST", path, body) as response:
        for line in _lines(response):
            text = line.decode(errors="replace")
            if text.startswith(":"):
                yield text[1:].strip()
            elif text == "data: [DONE]":
                return
            elif text.startswith("data: "):
                chunk = _object(text.removeprefix("data: "))
                if "error" in chunk:
                    raise ApiRefused(str(chunk["error"].get("message", "the answer failed")))
                yield chunk
    raise ApiRefused("the answer ended too early; look into the logs of the node")


@contextmanager
def _response(api: Api, method: str, path: str, body: Mapping[str, Any] | None) -> Iterator[httpx.Response]:
    import httpx

    timeout = httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    data = None if body is None else json.dumps(body).encode()
    try:
        # neither a proxy nor ~/.netrc: a node is in the same network, and no other host may get its key
        with (
            httpx.Client(timeout=timeout, trust_env=False) as client,
            client.stream(method, api.url + path, content=data, headers=api.headers) as response,
        ):
            if response.status_code == 401:
                raise ApiRefused(_key_refused(api))
            if response.status_code >= 400:
                raise ApiRefused(_sentence(response))
            yield response
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError):
        raise ApiUnreachable(f"no node answers at {api.url}; start one with `exobus node`, or pass --api URL") from None
    except httpx.HTTPError as error:
        raise ApiUnreachable(
            f"the connection to {api.url} broke ({str(error) or type(error).__name__}); is it a node?"
        ) from None


def _lines(response: httpx.Response) -> Iterator[bytes]:
    """Yield the lines of a stream. httpx would also split at the other line ends of Unicode, which JSON may contain."""
    rest = b""
    for data in response.iter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        yield from (line.rstrip(b"\r") for line in lines)
        if len(rest) > MAX_BYTES:
            raise ApiRefused("a line of the answer is too long; is this the address of a node?")


def _body(response: httpx.Response) -> bytes:
    body = bytearray()
    for data in response.iter_bytes():
        body += data
        if len(body) > MAX_BYTES:
            raise ApiRefused("the answer is too long; is this the address of a node?")
    return bytes(body)


def _key_refused(api: Api) -> str:
    if api.key:
        return f"the gateway at {api.url} does not accept this API key; pass another --api-key, or set EXOBUS_API_KEY"
    return f"the gateway at {api.url} needs an API key; pass --api-key, or set EXOBUS_API_KEY"


def _sentence(response: httpx.Response) -> str:
    try:
        return str(json.loads(_body(response))["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code} {response.reason_phrase}; is this the address of a node?"


def _object(data: bytes | str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ApiRefused("the answer is not a JSON object; is this the address of a node?")
    return value
