"""A model that MLX cannot split runs whole on one of two nodes, with the text of a single node."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.nodes.test_llamacpp import holders
from tests.nodes.test_nodes import wait_for_nodes
from tests.support.engines import ROOT
from tests.support.models import write_tokenizer_files
from tests.support.nodes import NodeProcess, nodes

LISTED, UNLISTED = "gemma4", "nanbeige"
"""The placer knows of the first that it cannot be split, and finds out when a ring of the second is refused."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder of tiny models, in another process, since this one may not import mlx_lm."""
    folder = tmp_path_factory.mktemp("models")
    for name in (LISTED, UNLISTED):
        command = [sys.executable, "-m", "tests.support.mlx_families", str(folder / name), name]
        subprocess.run(command, cwd=ROOT, check=True, timeout=60)
        write_tokenizer_files(folder / name)
    return folder


def text(node: NodeProcess, model: str) -> str:
    body = {"model": model, "temperature": 0, "max_tokens": 24, "messages": [{"role": "user", "content": "the ring"}]}
    answer = httpx.post(f"{node.api}/v1/chat/completions", json=body, timeout=120.0).json()
    return str(answer["choices"][0]["message"]["content"])


def test_two_nodes_run_it_whole_with_the_text_of_one(models: Path) -> None:
    arguments = ["--engine", "mlx", "--models-dir", str(models), "--threads", "1"]
    with nodes("ada", arguments=arguments) as (ada,):
        alone = text(ada, LISTED)
        assert alone
    with nodes("ada", "bob", arguments=arguments) as pair:
        for node in pair:
            wait_for_nodes(node, 2)
        assert text(pair[0], LISTED) == alone
        assert text(pair[0], UNLISTED)
        assert [len(holders(pair[0], model)) for model in (LISTED, UNLISTED)] == [1, 1]
