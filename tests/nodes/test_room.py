"""Real nodes with memory for one tiny model: others are unloaded for it while they are idle, and only then."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bus.client import BusClient, RequestError
from bus.messages import InstanceUnload, RequestDone
from cluster.failures import FailureCode
from tests.nodes.test_nodes import wait_for_nodes
from tests.support.commands import exobus
from tests.support.gateway.gateway_rig import eventually
from tests.support.models import write_tiny_llama
from tests.support.nodes import NodeProcess, nodes

NUMPY = ["--engine", "numpy", "--threads", "1"]
CONTEXT, LAYERS = 4096, 24
LAYER_BYTES = 10 * 64 * 64 * 4
KV_BYTES = CONTEXT * 2 * 2 * 16 * 4  # of a layer, for the shortest memory that a stage gets
MODEL_BYTES = LAYERS * (LAYER_BYTES + KV_BYTES)
ONE_MODEL = ["--memory", f"{MODEL_BYTES + 1_000_000}"]  # the embedding is small
WITHIN_S = 60.0


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two models whose texts do not end."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("one", "two"):
        write_tiny_llama(folder / name, n_layers=LAYERS, context=CONTEXT, printable=True)
    return folder


@pytest.fixture(scope="module")
def node(models_dir: Path) -> Iterator[NodeProcess]:
    with running(models_dir, "ada", arguments=ONE_MODEL) as (ada,):
        yield ada


@contextmanager
def running(models_dir: Path, *names: str, arguments: Sequence[str]) -> Iterator[list[NodeProcess]]:
    """Run nodes with the models."""
    with nodes(*names, arguments=[*NUMPY, "--models-dir", str(models_dir), *arguments]) as started:
        yield started


def body(model: str, **fields: Any) -> dict[str, Any]:
    sampling = {"temperature": 0.8, "top_k": 20, "seed": 7, "max_tokens": 4}
    return {"model": model, "messages": [{"role": "user", "content": "tell"}], **sampling, **fields}


def ask(node: NodeProcess, model: str) -> httpx.Response:
    return httpx.post(f"{node.api}/v1/chat/completions", json=body(model), timeout=WITHIN_S)


@contextmanager
def streaming(node: NodeProcess, model: str) -> Iterator[Iterator[str]]:
    """Stream texts that go on for longer than a refusal takes, one after the other, since each needs all memory.

    Yields the lines of them all, once the first token has come.
    """
    fields = body(model, stream=True, max_tokens=CONTEXT - 100, n=4)
    with httpx.stream("POST", f"{node.api}/v1/chat/completions", json=fields, timeout=WITHIN_S) as response:
        lines = (line for line in response.iter_lines() if line.startswith("data: "))
        next(lines)
        yield lines


def loaded(node: NodeProcess) -> set[str]:
    return {instance["model"] for instance in node.get("/v1/topology")["instances"]}


def test_models_that_do_not_fit_together_run_in_turn(node: NodeProcess) -> None:
    for model in ("one", "two", "one"):
        assert ask(node, model).status_code == 200
        assert loaded(node) == {model}
    assert sum("actors.engine_actor" in process.cmdline() for process in node.children()) == 1


def test_model_with_a_running_stream_is_not_unloaded(node: NodeProcess) -> None:
    with streaming(node, "one") as lines:
        refused = ask(node, "two")
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert error["code"] == "insufficient_memory"
        assert "two needs" in error["message"]
        assert "loaded now: one (in use)" in error["message"]
        assert "choices" in json.loads(next(lines).removeprefix("data: "))
    assert ask(node, "two").status_code == 200


def test_request_at_the_instant_of_an_unload_succeeds(node: NodeProcess) -> None:
    assert ask(node, "one").status_code == 200
    with ThreadPoolExecutor(1) as unloading:
        for _ in range(3):
            ended = unloading.submit(asyncio.run, unload(node, "one"))
            while not ended.done():
                assert ask(node, "one").status_code == 200
            ended.result()


async def unload(node: NodeProcess, model: str) -> None:
    """Unload a model at the first moment at which it is loaded and has no session."""
    config = node.config
    bus = BusClient(config.run_path, config.node_id, "unloading")
    await bus.start()
    try:
        async with asyncio.timeout(WITHIN_S):
            while True:
                try:
                    await bus.request("node", InstanceUnload(model), RequestDone, WITHIN_S)
                except RequestError as error:
                    if error.code not in (FailureCode.BUSY, FailureCode.MODEL_NOT_FOUND):
                        raise
                else:
                    return
    finally:
        await bus.close()


def test_two_models_that_are_asked_for_at_once_both_run(node: NodeProcess) -> None:
    with ThreadPoolExecutor(2) as asking:
        for _ in range(2):
            assert [answer.status_code for answer in asking.map(ask, (node, node), ("one", "two"))] == [200, 200]


def test_commands_show_and_unload_a_loaded_model(node: NodeProcess) -> None:
    here = {"EXOBUS_DATA_DIR": str(node.data_dir)}
    assert ask(node, "two").status_code == 200
    shown = exobus("models", "ls", **here).stdout.splitlines()[-2:]
    assert [line.split()[:2] for line in shown] == [["LOADED", "NODES"], ["two", "ada"]]
    with streaming(node, "two"):
        busy = exobus("models", "unload", "two", **here)
        assert (busy.returncode, "two is in use" in busy.stderr) == (1, True)
    assert eventually(lambda: exobus("models", "unload", "two", **here).returncode == 0, WITHIN_S)
    assert loaded(node) == set()
    gone = exobus("models", "unload", "two", **here)
    assert (gone.returncode, "two is not loaded" in gone.stderr) == (1, True)


def test_room_is_made_on_all_nodes_of_a_ring(models_dir: Path) -> None:
    half = ["--memory", f"{MODEL_BYTES // 2 + 1_000_000}"]
    with running(models_dir, "ada", "bob", arguments=half) as (ada, bob):
        wait_for_nodes(ada, 2)
        wait_for_nodes(bob, 2)
        for asked, model in ((ada, "one"), (bob, "two")):
            assert ask(asked, model).status_code == 200
            (instance,) = asked.get("/v1/topology")["instances"]
            assert instance["model"] == model
            assert {stage["node"] for stage in instance["stages"]} == {"ada", "bob"}


def test_stages_and_idle_time_have_bounds(models_dir: Path) -> None:
    with running(models_dir, "ada", arguments=["--max-stages", "1", "--keep-loaded", "2s"]) as (ada,):
        assert ask(ada, "one").status_code == 200
        with streaming(ada, "two"):
            assert loaded(ada) == {"two"}
        assert eventually(lambda: not loaded(ada), WITHIN_S)
