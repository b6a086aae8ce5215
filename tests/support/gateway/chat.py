"""Chat requests to the gateway of a rig, and their responses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import httpx

from bus.messages import InstanceEnsure, Reply, Work
from tests.support.gateway.gateway_rig import MODEL, Rig
from tests.support.gateway.text_stage import WITHIN_S

MESSAGES: list[Any] = [{"role": "user", "content": "hello"}]
JSON = {"content-type": "application/json"}
PLAIN: dict[str, Any] = {"model": MODEL, "messages": MESSAGES}


def post(rig: Rig, body: Any, timeout: float = WITHIN_S) -> httpx.Response:
    """Send a chat request as it is."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{rig.url}/v1/chat/completions", content=content, headers=JSON, timeout=timeout)


def streamed_lines(rig: Rig, **fields: Any) -> list[str]:
    """Stream a chat, and return its lines that are not empty."""
    response = post(rig, {**PLAIN, "stream": True, **fields})
    assert response.status_code == 200, response.text
    return [line for line in response.text.split("\n") if line]


def chunks_of(lines: list[str]) -> list[dict[str, Any]]:
    """Return the chunks among a stream's lines."""
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


def text_of(chunks: list[dict[str, Any]], choice: int = 0) -> str:
    """Return the text of one choice of a stream."""
    deltas = [c["delta"] for chunk in chunks for c in chunk["choices"] if c["index"] == choice]
    return "".join(delta.get("content", "") for delta in deltas)


@contextmanager
def held_up(rig: Rig) -> Iterator[None]:
    """Have the node delay its replies to requests for an instance until the end of the block."""
    rig.node.answering.clear()
    try:
        yield
    finally:
        rig.node.answering.set()


@contextmanager
def answering(rig: Rig, answer: Callable[[Work], Reply]) -> Iterator[None]:
    """Have the node reply so to requests for an instance during the block."""
    before = rig.node.answers[InstanceEnsure]
    rig.node.answers[InstanceEnsure] = answer
    try:
        yield
    finally:
        rig.node.answers[InstanceEnsure] = before


@contextmanager
def raw_request(rig: Rig, **fields: Any) -> Iterator[HTTPConnection]:
    """Send a chat request without reading its response."""
    connection = HTTPConnection(urlsplit(rig.url).netloc, timeout=WITHIN_S)
    connection.request("POST", "/v1/chat/completions", json.dumps({**PLAIN, **fields}), JSON)
    try:
        yield connection
    finally:
        connection.close()
