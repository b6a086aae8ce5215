"""Whole nodes with bad options, folders or models: one clear sentence, the right status, no partial files."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from cli.node.process import MIN_FILES
from models.catalogue import DEFAULT_MODEL
from tests.support.models import TinyVocabulary, write_tiny_gguf, write_tiny_llama
from tests.support.nodes import CODE as JOIN_CODE
from tests.support.nodes import ROOT, NodeProcess, clean_environment, nodes

CARD = """
id = "{id}"
name = "A tiny model"
family = "llama"
n_layers = 4
hidden_size = 64
n_heads = 4
n_kv_heads = 2
head_dim = 16
vocab_size = 264
context_length = 512
layer_bytes = 200000
embedding_bytes = 70000
size_bytes = 1000000

[source]
kind = "folder"
path = "{path}"
"""


def with_files(count: int, *command: str) -> list[str]:
    """Return a command that runs another one, which may open so many files."""
    return ["sh", "-c", f'ulimit -n {count} && exec "$@"', "sh", *command]


def refused(tmp_path: Path, *arguments: str, files: int = 1024) -> tuple[int, str]:
    """Return the exit status of a node that cannot start, and the one sentence that it prints."""
    own = [
        "--data-dir",
        str(tmp_path / "node"),
        "--discovery-port",
        "0",
        "--api-port",
        "0",
        "--bus-port",
        "0",
        "--join-port",
        "0",
    ]
    done = subprocess.run(
        with_files(files, sys.executable, "-m", "cli", "node", *own, *arguments),
        cwd=ROOT,
        env={**clean_environment(), "EXOBUS_CACHE": str(tmp_path / "cache"), "EXOBUS_JOIN": JOIN_CODE.text()},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stdout
    return done.returncode, lines[0]


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("option", ["--api-port", "--bus-port", "--join-port"])
def test_taken_port_is_named(tmp_path: Path, option: str) -> None:
    with taken_port() as port:
        status, sentence = refused(tmp_path, option, str(port))
    assert status == 1
    assert str(port) in sentence
    assert "port" in sentence


def test_unusable_data_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    status, sentence = refused(tmp_path, "--data-dir", str(tmp_path / "file" / "node"))
    assert status == 1
    assert "--data-dir" in sentence


def test_two_nodes_cannot_share_a_data_folder(tmp_path: Path) -> None:
    with nodes("ada", arguments=["--engine", "numpy"]) as (ada,):
        status, sentence = refused(tmp_path, "--data-dir", str(ada.data_dir))
        assert status == 1
        assert "in use by node 'ada'" in sentence
        assert ada.get("/health")["status"] == "ok"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("--engine", "abacus"), "mlx, llamacpp, tinygrad, onnx, numpy"),
        (("--memory", "lots"), "12GB"),
        (("--keep-loaded", "soon"), "30s, 10m, 2h"),
        (("--host", "0.0.0.0"), "127.0.0.1"),
        (("--host", "studio.local"), "not an address"),
        (("--api-host", "192.0.2.1"), "--api-keys"),
        (("--join", "home-secret"), "exobus cluster invite"),
        (("--peer", "not a peer"), "host:port"),
        (("--name", "../up"), "node name"),
    ],
)
def test_invalid_option_is_refused_before_the_start(tmp_path: Path, arguments: tuple[str, ...], wanted: str) -> None:
    status, sentence = refused(tmp_path, *arguments)
    assert status == 2
    assert wanted in sentence
    assert not (tmp_path / "node").exists()


@pytest.mark.parametrize("files", [24, 32, MIN_FILES - 1])
def test_too_few_files_are_refused_before_the_start(tmp_path: Path, files: int) -> None:
    status, sentence = refused(tmp_path, files=files)
    assert status == 1
    assert f"needs {MIN_FILES} open files, and this system allows {files};" in sentence
    assert not (tmp_path / "node").exists()


def test_node_answers_with_the_fewest_files(tmp_path: Path) -> None:
    (tmp_path / "cards").mkdir()
    write_tiny_llama(tmp_path / "sound")
    (tmp_path / "cards" / "sound.toml").write_text(CARD.format(id="sound", path=tmp_path / "sound"))
    arguments = ["--engine", "numpy", "--cards", str(tmp_path / "cards"), "--discovery-port", "0", "--api-port", "0"]
    environment = {"EXOBUS_JOIN": JOIN_CODE.text(), "EXOBUS_CACHE": str(tmp_path / "cache")}
    node = NodeProcess(tmp_path / "ada", arguments, environment, lambda *command: with_files(MIN_FILES, *command))
    try:
        node.ready()
        assert ask(node, "sound").status_code == 200
    finally:
        node.stop()


def test_unreadable_card_ends_the_node_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "broken.toml").write_text('id = "broken"\n')
    status, sentence = refused(tmp_path, "--cards", str(tmp_path / "cards"))
    assert status == 1
    assert "broken.toml" in sentence


def ask(node: NodeProcess, model: str) -> httpx.Response:
    body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
    return httpx.post(f"{node.api}/v1/chat/completions", json=body, timeout=60.0)


def test_missing_network_is_reported_and_leaves_no_files(tmp_path: Path) -> None:
    with taken_port() as port:
        closed = port
    offline = {
        "EXOBUS_CACHE": str(tmp_path / "cache"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_FIND_LINKS": "",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_INDEX_URL": f"http://127.0.0.1:{closed}/simple",
        "PIP_RETRIES": "0",
    }
    with nodes("ada", arguments=["--engine", "numpy"], environment=offline) as (ada,):
        answer = ask(ada, DEFAULT_MODEL)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "download_failed"
        assert "network" in answer.json()["error"]["message"]
        assert ada.get("/health")["status"] == "ok"
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".gguf", ".whl", ".part")]


def test_damaged_model_is_refused_and_others_still_work(tmp_path: Path) -> None:
    cards = tmp_path / "cards"
    cards.mkdir()
    write_tiny_gguf(tmp_path / "cut.gguf")
    whole = (tmp_path / "cut.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    write_tiny_llama(tmp_path / "liar")
    lie = next((tmp_path / "liar").glob("*.safetensors"))
    lie.write_bytes((1 << 40).to_bytes(8, "little") + lie.read_bytes()[8:])
    write_tiny_gguf(tmp_path / "rule.gguf", vocabulary=TinyVocabulary(pre="abacus"))
    (write_tiny_llama(tmp_path / "mute") / "tokenizer.json").write_text("{}")
    write_tiny_llama(tmp_path / "sound")
    models = {"cut": "cut.gguf", "liar": "liar", "sound": "sound", "rule": "rule.gguf", "mute": "mute"}
    for name, path in models.items():
        (cards / f"{name}.toml").write_text(CARD.format(id=name, path=tmp_path / path))
    with nodes("ada", arguments=["--engine", "numpy", "--cards", str(cards)]) as (ada,):
        for name, file in (("cut", "cut.gguf"), ("liar", lie.name)):
            answer = ask(ada, name)
            assert answer.status_code == 503, answer.text
            assert file in answer.json()["error"]["message"]
        for name, sentence in (("rule", "splits texts by the rule 'abacus'"), ("mute", "is not a tokenizer")):
            answer = ask(ada, name)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found"), answer.text
            assert "retry-after" not in answer.headers
            assert sentence in answer.json()["error"]["message"]
        assert ask(ada, "sound").status_code == 200
