"""Models that no card names run on real nodes: from a hub over two nodes, and a user's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.nodes.test_nodes import layers, wait_for_nodes
from tests.support.model_servers import FakeServer, fake_hub
from tests.support.models import write_tiny_gguf
from tests.support.nodes import NodeProcess, nodes

REPO = "Tiny/Llama-GGUF"
ARGUMENTS = ["--engine", "numpy", "--threads", "1"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    folder = tmp_path_factory.mktemp("repository")
    write_tiny_gguf(folder / "Tiny-Q8_0.gguf", quantization="Q8_0", printable=True)
    write_tiny_gguf(folder / "Tiny-Q4_1.gguf", quantization="Q4_1", printable=True)
    with fake_hub(folder) as server:
        yield server


def settings(hub: FakeServer, folder: Path) -> dict[str, str]:
    """Return the variables of nodes with a hub and a cache of their own."""
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "EXOBUS_CACHE": str(folder / "cache")}


def chat(node: NodeProcess, model: str) -> dict[str, Any]:
    body = {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "the ring"}]}
    answer: dict[str, Any] = httpx.post(f"{node.api}/v1/chat/completions", json=body, timeout=120.0).json()
    return answer


def test_repository_without_a_card_runs_over_two_nodes(hub: FakeServer, tmp_path: Path) -> None:
    with nodes("ada", "bob", arguments=ARGUMENTS, environment=settings(hub, tmp_path)) as (ada, bob):
        wait_for_nodes(ada, 2)
        wait_for_nodes(bob, 2)
        answers = [chat(node, f"{REPO}:q8_0") for node in (ada, bob)]
        assert all(answer["usage"]["completion_tokens"] == 8 for answer in answers), answers
        assert set(layers(ada)) == {"ada", "bob"}
        described = ada.get(f"/v1/models/{REPO}")
        assert (described["id"], described["n_layers"]) == ("tiny--llama-gguf--q8_0", 4)
        refused = chat(ada, "./folder")
        assert "the API takes no paths; give ./folder a name with `exobus models add" in refused["error"]["message"]
        unknown = chat(ada, f"{REPO}:Q2_K")
        assert "has no quantization Q2_K; it has Q4_1, Q8_0" in unknown["error"]["message"]
