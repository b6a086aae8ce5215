"""Whole nodes with the default model: found, split, chatted with, stopped. Real processes only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from bus.client import BusClient
from bus.messages import EngineStats, InstanceUp, SessionFinished, kind_of
from models.catalogue import DEFAULT_MODEL
from tests.support.models import default_model_path
from tests.support.nodes import NodeProcess, free_udp_port, nodes

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
NUMPY = ["--engine", "numpy"]


@pytest.fixture(scope="module", autouse=True)
def files() -> Path:
    """Fetch the default model before any clock runs."""
    return default_model_path()


def client(node: NodeProcess) -> OpenAI:
    return OpenAI(base_url=f"{node.api}/v1", api_key="none", max_retries=0, timeout=120.0)


def layers(node: NodeProcess) -> dict[str, tuple[int, int]]:
    """Return the layers that each node holds, by its name, as the gateway reports them."""
    (instance,) = node.get("/v1/topology")["instances"]
    return {stage["node"]: (stage["start_layer"], stage["end_layer"]) for stage in instance["stages"]}


def wait_for_nodes(node: NodeProcess, count: int) -> None:
    """Wait until so many nodes are in the topology of a node."""
    for _ in range(2000):
        if len(node.get("/v1/topology")["nodes"]) == count:
            return
    raise AssertionError(f"{count} nodes never stood in the topology")


def wait_for_ring(node: NodeProcess, *names: str, within_s: float = 60.0) -> None:
    """Wait until the model stands on exactly these nodes, and nowhere else."""
    deadline = time.monotonic() + within_s
    while True:
        instances = node.get("/v1/topology")["instances"]
        rings = [{stage["node"] for stage in instance["stages"]} for instance in instances]
        if rings == [set(names)]:
            return
        assert time.monotonic() < deadline, f"the model stands on {rings}"


def ask(node: NodeProcess, **settings: Any) -> str:
    with client(node) as chats:
        answer = chats.chat.completions.create(model=DEFAULT_MODEL, messages=QUESTION, **settings)
    return answer.choices[0].message.content or ""


def test_chat_runs_over_the_layers_of_both_nodes() -> None:
    with nodes("ada", "bob", arguments=NUMPY) as (ada, bob):
        wait_for_nodes(ada, 2)
        assert ask(ada, temperature=0) == "The capital of France is Paris."
        held = layers(ada)
        assert set(held) == {"ada", "bob"}
        assert sorted(held.values())[0][0] == 0
        assert sorted(held.values())[0][1] == sorted(held.values())[1][0]
        assert sorted(held.values())[1][1] == 30
        assert ask(bob, temperature=0) == "The capital of France is Paris."


def test_any_number_of_nodes_writes_equal_text() -> None:
    texts = set()
    for names in (("a",), ("a", "b"), ("a", "b", "c")):
        with nodes(*names, arguments=NUMPY) as started:
            wait_for_nodes(started[0], len(names))
            texts.add(ask(started[0], temperature=0.8, seed=7, max_tokens=48))
            assert len(layers(started[0])) == len(names)
    assert len(texts) == 1


def test_later_node_gets_layers_without_a_chat() -> None:
    beacons = ["--discovery-port", str(free_udp_port()), *NUMPY]
    with nodes("first", arguments=beacons) as (first,):
        ask(first, max_tokens=4)
        assert set(layers(first)) == {"first"}
        with nodes("second", arguments=beacons):
            wait_for_ring(first, "first", "second")
            assert ask(first, temperature=0) == "The capital of France is Paris."


def test_chat_goes_on_while_a_ring_grows() -> None:
    beacons = ["--discovery-port", str(free_udp_port()), *NUMPY]
    with nodes("first", arguments=beacons) as (first,):
        before = ask(first, temperature=0, max_tokens=200)
        with ThreadPoolExecutor(1) as chatting, nodes("second", arguments=beacons):
            answer = chatting.submit(ask, first, temperature=0, max_tokens=200)
            wait_for_ring(first, "first", "second")
            assert answer.result() == before


def test_warm_chat_touches_no_bus_before_its_opening() -> None:
    with nodes("ada", arguments=NUMPY) as (ada,):
        cold, warm = asyncio.run(work_of_two_chats(ada))
    assert cold == ["download.want", "instance.ensure"]
    assert warm == []


async def work_of_two_chats(node: NodeProcess) -> tuple[list[str], list[str]]:
    """Return the kinds of the work that the gateway sends during a first chat, and during a second."""
    config = node.config
    sent: list[list[str]] = []
    bus = BusClient(config.run_path, config.node_id, "observer")
    await bus.start(["tap.", kind_of(InstanceUp), kind_of(SessionFinished)])
    try:
        for _ in range(2):
            chat = asyncio.create_task(asyncio.to_thread(ask, node, max_tokens=2))
            sent.append([kind async for kind in gateway_work(bus)])
            await chat
    finally:
        await bus.close()
    return sent[0], sent[1]


async def gateway_work(bus: BusClient) -> AsyncIterator[str]:
    """Yield the kinds of work from the gateway until a session is over, but for what it sends when idle or waiting."""
    async with asyncio.timeout(60):
        async for envelope in bus.deliveries():
            header = envelope.header
            if isinstance(envelope.message, SessionFinished):
                return
            from_gateway = str(envelope.to).startswith("tap.") and header.sender == f"{bus.node_id}/gateway"
            if from_gateway and header.kind not in ("actor.hello", "hub.describe", "request.check"):
                yield header.kind


def test_peer_option_works_without_beacons() -> None:
    silent = ["--discovery-port", "0", *NUMPY]
    with (
        nodes("ada", arguments=silent) as (ada,),
        nodes("bob", arguments=[*silent, "--peer", ada.join_endpoint]) as (bob,),
    ):
        wait_for_nodes(bob, 2)
        wait_for_nodes(ada, 2)


def test_disconnect_frees_every_stage() -> None:
    with nodes("ada", "bob", arguments=NUMPY) as (ada, _):
        wait_for_nodes(ada, 2)
        ask(ada, max_tokens=2)
        freed = asyncio.run(stages_freed_after_a_disconnect(ada))
        assert freed == {"ada", "bob"}


async def stages_freed_after_a_disconnect(node: NodeProcess) -> set[str]:
    """Return the nodes with a stage that was busy with a stream, and free after its client disconnected."""
    config = node.config
    names = {record["node_id"]: record["name"] for record in node.get("/v1/topology")["nodes"]}
    bus = BusClient(config.run_path, config.node_id, "observer")
    await bus.start(["engine.stats"])
    busy: set[str] = set()
    freed: set[str] = set()
    leave = asyncio.Event()
    streaming = asyncio.create_task(stream_until(node, leave))
    async with asyncio.timeout(60):
        async for envelope in bus.deliveries():
            if isinstance(envelope.message, EngineStats):
                name = names[envelope.node]
                (busy if envelope.message.sessions else freed).add(name)
                if busy == set(names.values()) and not leave.is_set():
                    freed.clear()
                    leave.set()
                if leave.is_set() and freed == busy:
                    break
    await streaming
    await bus.close()
    return freed


async def stream_until(node: NodeProcess, leave: asyncio.Event) -> None:
    """Read a long stream until `leave` is set, then disconnect."""
    question = {"model": DEFAULT_MODEL, "stream": True, "messages": QUESTION, "temperature": 1.0, "max_tokens": 4000}
    question["messages"] = [{"role": "user", "content": "Write a very long story about the sea."}]
    async with (
        httpx.AsyncClient(timeout=60.0) as http,
        http.stream("POST", f"{node.api}/v1/chat/completions", json=question) as answer,
    ):
        async for _ in answer.aiter_lines():
            if leave.is_set():
                return


def test_interrupt_leaves_no_process_or_run_folder() -> None:
    with nodes("ada", arguments=NUMPY) as (ada,):
        ask(ada, max_tokens=2)
        children = ada.children()
        run_dir = Path((ada.data_dir / "run").read_text())
        assert any("engine_actor" in " ".join(child.cmdline()) for child in children)
        ada.stop()
        assert ada.process.returncode == 0
        assert not [child for child in children if child.is_running()]
        assert not run_dir.exists()
