"""Models that no card names run on real nodes: from a hub over two nodes, and a user's own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.nodes.test_nodes import wait_for_nodes
from tests.support.commands import exobus
from tests.support.gateway.gateway_rig import ROOT, eventually
from tests.support.model_servers import FakeServer, fake_hub, files_of
from tests.support.models import write_tiny_gguf, write_tiny_llama
from tests.support.nodes import NodeProcess, clean_environment, nodes

REPO = "Tiny/Llama-GGUF"
ARGUMENTS = ["--engine", "numpy", "--threads", "1"]


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    folder = tmp_path_factory.mktemp("repository")
    write_tiny_gguf(folder / "Tiny-Q8_0.gguf", quantization="Q8_0", printable=True)
    write_tiny_gguf(folder / "Tiny-Q4_1.gguf", quantization="Q4_1", printable=True)
    with fake_hub(folder) as server:
        yield server


@pytest.fixture(scope="module")
def pair(hub: FakeServer, models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NodeProcess]]:
    """Run two linked nodes with a hub and a cache of their own."""
    folder = tmp_path_factory.mktemp("pair")
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "EXOBUS_CACHE": str(folder / "cache")}
    settings["EXOBUS_MODELS"] = str(models_dir)
    with nodes("ada", "bob", arguments=ARGUMENTS, environment=settings) as (ada, bob):
        wait_for_nodes(ada, 2)
        wait_for_nodes(bob, 2)
        yield [ada, bob]


def chat(node: NodeProcess, model: str) -> dict[str, Any]:
    body = {"model": model, "max_tokens": 8, "temperature": 0, "messages": [{"role": "user", "content": "the ring"}]}
    answer: dict[str, Any] = httpx.post(f"{node.api}/v1/chat/completions", json=body, timeout=120.0).json()
    return answer


def ring(node: NodeProcess, model_id: str) -> set[str]:
    """Return the nodes that hold layers of a model."""
    found = [instance for instance in node.get("/v1/topology")["instances"] if instance["model"] == model_id]
    return {stage["node"] for instance in found for stage in instance["stages"]}


def command(node: NodeProcess, *arguments: str) -> str:
    """Return what a command for this node prints."""
    done = exobus(*arguments, EXOBUS_DATA_DIR=str(node.data_dir), EXOBUS_API="", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_repository_without_a_card_runs_over_two_nodes(pair: list[NodeProcess]) -> None:
    answers = [chat(node, f"{REPO}:q8_0") for node in pair]
    assert all(answer["usage"]["completion_tokens"] == 8 for answer in answers), answers
    assert ring(pair[0], "tiny--llama-gguf--q8_0") == {"ada", "bob"}
    described = pair[0].get(f"/v1/models/{REPO}:auto")
    assert (described["id"], described["n_layers"]) == ("tiny--llama-gguf--q8_0", 4)
    assert "Q8_0 is the largest of 2 that fits" in described["why"]


def test_known_quantization_serves_while_the_hub_fails(pair: list[NodeProcess], hub: FakeServer) -> None:
    assert chat(pair[0], f"{REPO}:q8_0")["usage"]["completion_tokens"] == 8
    hub.faults.status["model info"] = 500
    described = pair[0].get(f"/v1/models/{REPO}?context=77")
    hub.faults.status.clear()
    assert described["id"] == "tiny--llama-gguf--q8_0"
    assert "is known here, and the hub returned status 500" in described["why"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("./folder", "the API takes no paths; give ./folder a name with `exobus models add ./folder`"),
        ("/etc/passwd", "the API takes no paths"),
        (f"{REPO}:Q2_K", "has no quantization Q2_K; it has Q4_1, Q8_0"),
        ("no/such/name", "has not the form ORG/REPO"),
        ("smolm2-135m", "did you mean smollm2-135m"),
        ("gpt-4o", "lists them all; on this machine are tiny--llama-gguf--q8_0"),
    ],
)
def test_name_of_no_model_is_refused(pair: list[NodeProcess], name: str, sentence: str) -> None:
    error = chat(pair[0], name)["error"]
    assert sentence in error["message"]
    assert error["type"] == "invalid_request_error"


def test_pull_that_was_interrupted_goes_on(pair: list[NodeProcess], hub: FakeServer) -> None:
    name, file = f"{REPO}:Q4_1", "Tiny-Q4_1.gguf"
    ada, stalled = pair[0], threading.Event()
    ada.get(f"/v1/models/{name}")
    parts = Path(ada.config.cache_dir, "tiny--llama-gguf--q4_1", ".parts")
    settings = {"HF_ENDPOINT": hub.url, "EXOBUS_DATA_DIR": str(ada.data_dir), "EXOBUS_API": ""}
    hub.faults.cut[file], hub.faults.stalled[file] = [20_000], stalled
    pulling = subprocess.Popen(
        [sys.executable, "-m", "cli", "models", "pull", name],
        cwd=ROOT,
        env={**clean_environment(), **settings},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert eventually(lambda: any(part.stat().st_size == 20_000 for part in parts.glob("*")), 20.0)
    pulling.send_signal(signal.SIGINT)
    _, said = pulling.communicate(timeout=20.0)
    stalled.set()
    assert (pulling.returncode, said) == (
        130,
        f"exobus: interrupted; `exobus models pull {name}` goes on where it ended\n",
    )
    done = exobus("models", "pull", name, **settings)
    assert "tiny--llama-gguf--q4_1 is here" in done.stdout, done.stderr
    assert (file, 20_000) in hub.first_bytes


def test_unknown_repository_is_looked_up_once(pair: list[NodeProcess], hub: FakeServer) -> None:
    hub.faults.status["model info"] = 404
    errors = [chat(pair[0], "No/Such")["error"] for _ in range(3)]
    hub.faults.status.clear()
    assert all("the hub has no repository No/Such" in error["message"] for error in errors), errors
    assert sum("/models/No/Such/" in request for request in hub.requests) == 1


def test_model_that_no_engine_runs_is_refused_unfetched(
    pair: list[NodeProcess], hub: FakeServer, tmp_path: Path
) -> None:
    folder = write_tiny_llama(tmp_path)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"glm4"'))
    before = dict(hub.files)
    hub.files |= files_of(folder)
    error = chat(pair[0], "Tiny/Glm4")["error"]
    hub.files = before
    assert "only mlx may run tiny--glm4 (family glm4), and no node has it" in error["message"]
    assert {"ada uses numpy", "bob uses numpy"} <= {part.strip() for part in re.split("[:,;]", error["message"])}
    assert "model.safetensors" not in [name for name, first in hub.first_bytes if first > 8]
    done = exobus("models", "plan", "tiny--glm4", EXOBUS_DATA_DIR=str(pair[0].data_dir), EXOBUS_API="")
    assert (done.returncode, "no node has it" in done.stderr) == (1, True)


def test_own_model_runs_where_its_files_are(pair: list[NodeProcess], tmp_path: Path) -> None:
    ada, bob = pair
    files = write_tiny_gguf(tmp_path / "My Tiny.gguf", printable=True, seed=3)
    assert "my-tiny was added" in command(ada, "models", "add", str(files))
    assert chat(ada, "my-tiny")["usage"]["completion_tokens"] == 8
    assert ring(ada, "my-tiny") == {"ada"}
    command(bob, "models", "add", str(write_tiny_gguf(tmp_path / "copy" / "My Tiny.gguf", printable=True, seed=3)))
    assert eventually(lambda: ring(ada, "my-tiny") == {"ada", "bob"}, 60.0)
    assert chat(bob, "my-tiny")["usage"]["completion_tokens"] == 8


def test_path_is_added_and_run_at_once(pair: list[NodeProcess], tmp_path: Path) -> None:
    ada, path = pair[0], write_tiny_gguf(tmp_path / "Shown.gguf", n_layers=3)
    command(ada, "run", str(path), "the", "--max-tokens", "1")
    assert ada.get("/v1/models/shown")["n_layers"] == 3
    assert "its files stay" in command(ada, "models", "rm", "shown")
    assert path.is_file()
    assert "shown" not in {model["id"] for model in ada.get("/v1/models")["data"]}


def test_model_in_the_models_folder_is_found_and_lost(pair: list[NodeProcess], models_dir: Path) -> None:
    path = write_tiny_gguf(models_dir / "Dropped In.gguf", printable=True)
    assert eventually(lambda: "dropped-in" in listed(pair[1]), 10.0)
    assert chat(pair[1], "dropped-in")["usage"]["completion_tokens"] == 8
    path.unlink()
    assert eventually(lambda: "dropped-in" not in listed(pair[1]), 10.0)


def listed(node: NodeProcess) -> set[str]:
    """Return the ids of the models in a node's catalogue."""
    return {model["id"] for model in node.get("/v1/models")["data"]}
