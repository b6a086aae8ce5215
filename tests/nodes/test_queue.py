"""A whole node with memory for the keys and values of one chat: queueing, refusals, and the prefix cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from models.catalogue import DEFAULT_MODEL
from tests.support.models import default_model_path
from tests.support.nodes import NodeProcess, nodes

POSITIONS = 607  # of 30 layers' keys and values, each of 3 heads of 64 float32
ONE_CHAT = ["--engine", "numpy", "--kv-memory", "28MB"]
QUESTION = {"role": "user", "content": "Tell a long story about a ring of machines. " * 8}
WITHIN_S = 120.0


@pytest.fixture(scope="module")
def node() -> Iterator[NodeProcess]:
    default_model_path()
    with nodes("ada", arguments=ONE_CHAT) as (ada,):
        assert ask(ada, max_tokens=1).status_code == 200
        yield ada


def ask(node: NodeProcess, **fields: Any) -> httpx.Response:
    """Return the response to a greedy chat."""
    return httpx.post(f"{node.api}/v1/chat/completions", json=body(**fields), timeout=WITHIN_S)


@contextmanager
def asking(node: NodeProcess, **fields: Any) -> Iterator[Iterator[str]]:
    """Stream a greedy chat, and yield its lines that are not empty."""
    fields |= {"stream": True, "stream_options": {"include_usage": True}}
    with httpx.stream("POST", f"{node.api}/v1/chat/completions", json=body(**fields), timeout=WITHIN_S) as response:
        yield (line for line in response.iter_lines() if line)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": DEFAULT_MODEL, "messages": [QUESTION], "temperature": 0, **fields}


def test_chat_waits_for_memory_and_is_then_admitted(node: NodeProcess) -> None:
    with ExitStack() as talking:
        first = talking.enter_context(asking(node, max_tokens=450))
        assert any(line.startswith("data: ") for line in first)
        with asking(node, max_tokens=8) as second:
            assert ": exobus 1 answer is ahead of yours" in second
            talking.close()
            rest = list(second)
    usage = json.loads(rest[-2].removeprefix("data: "))
    assert rest[-1] == "data: [DONE]"
    assert (usage["usage"]["completion_tokens"], usage["timings"]["queued_ms"] > 0) == (8, True)


def test_repeated_prompt_is_cached(node: NodeProcess) -> None:
    before, again = ask(node, max_tokens=4).json(), ask(node, max_tokens=4).json()
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 64
    assert again["choices"] == before["choices"]


def test_positions_follow_from_the_kv_memory(node: NodeProcess) -> None:
    (instance,) = node.get("/v1/topology")["instances"]
    assert [stage["positions"] for stage in instance["stages"]] == [POSITIONS]


def test_oversized_prompt_is_refused_with_the_next_step(node: NodeProcess) -> None:
    response = ask(node, messages=[{"role": "user", "content": "word " * POSITIONS}])
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "too_large", "messages")
    assert f"holds {POSITIONS} " in error["message"]
    assert "--kv-memory" in error["message"]
