"""`exobus bus …` as processes that observe a real hub."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from bus.messages import Status
from cli.local_nodes import running_nodes
from tests.support.commands import command, exobus_on_terminal
from tests.support.gateway.gateway_rig import NODE_ID, ROOT, Rig, running_rig
from tests.support.gateway.text_stage import WITHIN_S
from tests.support.nodes import clean_environment


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(tmp_path_factory.mktemp("bus")) as rig:
        yield rig


def exobus_bus(data_dir: str | Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command; it finds no other node than that in `data_dir`."""
    return subprocess.Popen(
        command(["bus", *arguments]),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**clean_environment(), "EXOBUS_DATA_DIR": str(data_dir), "NO_COLOR": "1"},
    )


def outcome(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Return exit status, output and errors of a command that ends by itself."""
    output, complaints = process.communicate(timeout=WITHIN_S)
    return process.returncode, output, complaints


@contextmanager
def publishing(rig: Rig) -> Iterator[None]:
    """Publish facts all the time while the block runs."""
    stopped = threading.Event()

    def publish() -> None:
        while not stopped.wait(0.02):
            rig.node.publish(Status("tiny", "it goes on"))

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(WITHIN_S)


def test_ls_lists_actors_with_their_processes(rig: Rig) -> None:
    status, output, _ = outcome(exobus_bus(rig.config.data_dir, "ls"))
    assert status == 0
    assert ["gateway", str(rig.gateway.pid)] in [line.split() for line in output.splitlines()]
    assert NODE_ID in output


def test_ls_as_json_is_the_hubs_state(rig: Rig) -> None:
    _, output, _ = outcome(exobus_bus(rig.config.data_dir, "ls", "--json", "--node", "rig"))
    (state,) = json.loads(output)
    assert {"hub", "gateway", "node", "download", "topology"} <= {actor["name"] for actor in state["actors"]}


def test_sub_prints_facts_as_lines_or_json(rig: Rig) -> None:
    with publishing(rig):
        status, line, _ = outcome(exobus_bus(rig.config.data_dir, "sub", "status", "--count", "1"))
        _, data, _ = outcome(exobus_bus(rig.config.data_dir, "sub", ">", "--count", "1", "--json"))
    assert status == 0
    assert f"{NODE_ID}/node  " in line
    assert 'text="it goes on"' in line
    assert json.loads(data)["header"]["kind"] in ("status", "actor.up")


def test_sub_prints_tapped_work_and_replies(rig: Rig) -> None:
    process = exobus_bus(rig.config.data_dir, "sub", "tap.topology.*", "--count", "2", "--json")
    seen: list[str] = []
    reader = threading.Thread(target=lambda: seen.extend(process.communicate(timeout=WITHIN_S)[0].splitlines()))
    reader.start()
    while reader.is_alive():
        httpx.get(f"{rig.url}/v1/topology")
    assert {json.loads(line)["topic"] for line in seen} == {"tap.topology.get", "tap.topology.state"}
    assert process.returncode == 0


def test_top_counts_by_kind(rig: Rig) -> None:
    with publishing(rig):
        _, output, _ = outcome(exobus_bus(rig.config.data_dir, "top", "-n", "2", "--interval", "0.5", "--json"))
        _, table, _ = outcome(exobus_bus(rig.config.data_dir, "top", "-n", "1", "--interval", "0.5"))
    _, second = (json.loads(line) for line in output.splitlines())
    (row,) = (row for row in second if row["topic"] == "status")
    assert 5 < row["messages_per_s"] <= 60
    assert row["lost"] == 0
    assert table.splitlines()[0].split() == ["KIND", "MSG/S", "KB/S", "LOST"]


def test_malformed_pattern_ends_with_status_2(rig: Rig) -> None:
    status, _, complaint = outcome(exobus_bus(rig.config.data_dir, "sub", "a..b"))
    assert status == 2
    assert "not a pattern" in complaint


def test_missing_node_ends_with_status_3(tmp_path: Path) -> None:
    status, output, complaint = outcome(exobus_bus(tmp_path, "ls"))
    assert (status, output) == (3, "")
    assert "`exobus node`" in complaint


def test_node_with_its_own_data_folder_is_found(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXOBUS_DATA_DIR", raising=False)
    assert rig.config.node_id in {node.node_id for node in running_nodes()}
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert running_nodes() == []


def test_unknown_node_lists_the_known_names(rig: Rig) -> None:
    status, _, complaint = outcome(exobus_bus(rig.config.data_dir, "ls", "--node", "other"))
    assert status == 3
    assert "these do: rig" in complaint


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [("tokens", "kinds: session.token"), ("topology.get", "kinds: tap.topology.get\n"), ("foo bar", "kinds: ")],
)
def test_pattern_that_matches_no_kind_is_reported(rig: Rig, pattern: str, sentence: str) -> None:
    process = exobus_bus(rig.config.data_dir, "sub", pattern)
    assert process.stderr is not None
    line = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    status, _, _ = outcome(process)
    assert f"listening on rig, but no known kind matches {pattern!r}; {sentence}" in line
    assert status == 0


def test_lines_are_cut_to_the_terminal_width(rig: Rig) -> None:
    with publishing(rig):
        sent = exobus_on_terminal("bus", "sub", "status", "-n", "2", EXOBUS_DATA_DIR=rig.config.data_dir)
    assert [len(line) for line in sent.split("\r\n")] == [80, 80, 0]
