"""One ring over two engines: real nodes, a tiny model, and the text of a single node."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.nodes.test_bad_input import CARD
from tests.nodes.test_nodes import wait_for_ring
from tests.support.models import write_tiny_llama
from tests.support.nodes import NodeProcess, free_udp_port, nodes


@pytest.fixture
def cards(tmp_path: Path) -> list[str]:
    """Return options that add a tiny model, and separate the nodes of this test from others."""
    write_tiny_llama(tmp_path / "tiny")
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "tiny.toml").write_text(CARD.format(id="tiny", path=tmp_path / "tiny"))
    return ["--cards", str(tmp_path / "cards"), "--discovery-port", str(free_udp_port())]


def text(node: NodeProcess) -> str:
    body = {"model": "tiny", "temperature": 0, "max_tokens": 24, "messages": [{"role": "user", "content": "the ring"}]}
    answer = httpx.post(f"{node.api}/v1/chat/completions", json=body, timeout=120.0).json()
    return str(answer["choices"][0]["message"]["content"])


def test_mixed_ring_writes_what_numpy_writes_alone(cards: list[str]) -> None:
    with nodes("ada", arguments=[*cards, "--engine", "numpy"]) as (ada,):
        alone = text(ada)
        assert alone
        with (
            nodes("bob", arguments=[*cards, "--engine", "mlx"]),
            nodes("cyd", arguments=[*cards, "--engine", "tinygrad"]),
        ):
            wait_for_ring(ada, "ada", "bob", "cyd")
            assert text(ada) == alone
