"""Which node here a command uses, and how the address of a gateway is completed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import typer

from cli import local_nodes
from cli.local_nodes import checked_url, choose_node, gateway, the_only_node
from common.config import API_FILE, NodeConfig


def node(folder: Path, name: str, api: str = "") -> NodeConfig:
    run_dir = folder / name
    run_dir.mkdir()
    if api:
        (run_dir / API_FILE).write_text(api)
    return NodeConfig(node_id=f"{name:a<16}", name=name, incarnation=1, run_dir=str(run_dir), data_dir="", cache_dir="")


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[NodeConfig]:
    """Run two nodes, of which the second by name has the usual port."""
    nodes = [node(tmp_path, "ada", "http://127.0.0.1:40000"), node(tmp_path, "bob", "http://127.0.0.1:52415")]
    monkeypatch.delenv("EXOBUS_DATA_DIR", raising=False)
    monkeypatch.setattr(local_nodes, "_data_folders", lambda: [Path("0"), Path("1")])
    monkeypatch.setattr(local_nodes, "running_node", lambda folder: nodes[int(folder.name)])
    return nodes


def test_node_on_the_usual_port_comes_first(running: list[NodeConfig], capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_node(None).name == "bob"
    assert capsys.readouterr().err == "asking node bob; --node or EXOBUS_NODE chooses another (ada)\n"
    assert gateway(None, None).url == "http://127.0.0.1:52415"


def test_named_node_is_used_silently(running: list[NodeConfig], capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_node("ada").name == choose_node(running[0].node_id).name == "ada"
    assert gateway(None, None, "ada").url == "http://127.0.0.1:40000"
    assert capsys.readouterr().err == ""


def test_url_wins_over_a_node(running: list[NodeConfig]) -> None:
    assert gateway("http://10.0.0.5:1", None, "ada").url == "http://10.0.0.5:1"


def test_unknown_name_ends_with_the_names_there_are(
    running: list[NodeConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as left:
        choose_node("eve")
    assert left.value.exit_code == 3
    assert "no node 'eve' runs here; these do: bob, ada" in capsys.readouterr().err


def test_decision_among_several_nodes_needs_a_name(
    running: list[NodeConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as left:
        the_only_node(None)
    assert left.value.exit_code == 2
    assert "several nodes run here (bob, ada); choose one with --node" in capsys.readouterr().err
    assert the_only_node("ada").name == "ada"


def test_nodes_of_one_name_need_an_id(running: list[NodeConfig], capsys: pytest.CaptureFixture[str]) -> None:
    running[1] = msgspec.structs.replace(running[1], name="ada")
    with pytest.raises(typer.Exit) as left:
        the_only_node("ada")
    assert left.value.exit_code == 2
    assert f"({running[1].node_id}, {running[0].node_id})" in capsys.readouterr().err
    assert the_only_node(running[0].node_id) == running[0]


def test_node_that_is_not_ready_is_named(
    running: list[NodeConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running[0] = node(tmp_path, "cyd")
    with pytest.raises(typer.Exit) as left:
        gateway(None, None, "cyd")
    assert left.value.exit_code == 3
    assert "node cyd is not ready yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("127.0.0.1:52415", "http://127.0.0.1:52415"),
        ("localhost", "http://localhost:52415"),
        ("[::1]", "http://[::1]:52415"),
        ("http://studio", "http://studio"),
        ("https://chat.example/", "https://chat.example"),
        ("http://127.0.0.1:52415/v1", "http://127.0.0.1:52415"),
        (" studio:nonsense ", "http://studio:nonsense"),
    ],
)
def test_address_is_completed(text: str, url: str) -> None:
    assert checked_url(text) == url
