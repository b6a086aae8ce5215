"""Processes of whole nodes that are killed under a stream: the client gets an error, and the next chat works."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psutil
import pytest

from models.catalogue import DEFAULT_MODEL
from tests.nodes.test_nodes import NUMPY, ask, layers, wait_for_nodes
from tests.support.models import default_model_path
from tests.support.nodes import NodeProcess, nodes

STORY = [{"role": "user", "content": "Write a very long story about the sea."}]
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module", autouse=True)
def _files() -> None:
    default_model_path()


@contextmanager
def running_stream(node: NodeProcess) -> Iterator[Iterator[str]]:
    """Stream a long text, and yield its lines after the first tokens."""
    body = {
        "model": DEFAULT_MODEL,
        "stream": True,
        "temperature": 1.0,
        "seed": 3,
        "max_tokens": 4000,
        "messages": STORY,
    }
    with httpx.stream("POST", f"{node.api}/v1/chat/completions", json=body, timeout=30.0) as answer:
        lines = answer.iter_lines()
        seen = 0
        for line in lines:
            seen += line.startswith("data: {")
            if seen == 10:
                break
        assert seen == 10, "a fault test is void unless traffic flows"
        yield lines


def error_in(lines: Iterator[str]) -> str:
    """Return the error that ends a stream."""
    for line in lines:
        if line.startswith('data: {"error"'):
            return str(json.loads(line[6:])["error"]["message"])
        assert line != "data: [DONE]", "the stream ended as if nothing had happened"
    raise AssertionError("the stream ended without an error")


def child(node: NodeProcess, module: str) -> psutil.Process:
    return next(process for process in node.children() if module in " ".join(process.cmdline()))


def test_next_chat_works_after_a_killed_engine() -> None:
    with nodes("ada", "bob", arguments=NUMPY) as (ada, bob):
        wait_for_nodes(ada, 2)
        ask(ada, max_tokens=2)
        with running_stream(ada) as lines:
            child(bob, "engine_actor").kill()
            assert "try again" in error_in(lines)
        assert ask(ada, temperature=0) == ANSWER
        assert set(layers(ada)) == {"ada", "bob"}


def test_remaining_nodes_serve_after_a_killed_node() -> None:
    with nodes("ada", "bob", arguments=NUMPY) as (ada, bob):
        wait_for_nodes(ada, 2)
        ask(ada, max_tokens=2)
        children = bob.children()
        with running_stream(ada) as lines:
            os.kill(bob.process.pid, signal.SIGKILL)
            assert "try again" in error_in(lines)
        wait_for_nodes(ada, 1)
        assert ask(ada, temperature=0) == ANSWER
        assert set(layers(ada)) == {"ada"}
        _, alive = psutil.wait_procs(children, timeout=5)
        assert not alive, "children outlived their supervisor"


@pytest.mark.parametrize("module", ["gateway", "bus.hub", "actors.node_actor", "actors.topology_actor"])
def test_killed_actor_is_restarted_and_chats_go_on(module: str) -> None:
    with nodes("ada", arguments=NUMPY) as (ada,):
        assert ask(ada, temperature=0) == ANSWER
        dead = child(ada, module)
        dead.kill()
        ada.line(lambda line: "started again" in line)
        assert answer_within(ada, 30) == ANSWER


def answer_within(node: NodeProcess, seconds: float) -> str:
    """Return the text of a chat, which is repeated while the node is not ready."""
    deadline = time.monotonic() + seconds
    body = {
        "model": DEFAULT_MODEL,
        "temperature": 0,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    }
    while True:
        try:
            answer = httpx.post(f"{node.api}/v1/chat/completions", json=body, timeout=30.0)
        except httpx.TransportError:
            answer = None
        if answer is not None and answer.status_code == 200:
            return str(answer.json()["choices"][0]["message"]["content"])
        assert time.monotonic() < deadline, answer.text if answer else "no response"
