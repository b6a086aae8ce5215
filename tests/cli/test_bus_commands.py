"""`exobus bus …` as processes that observe a real hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from bus.messages import Status
from cli.local_nodes import running_nodes
from tests.support.ring import NODE_ID, ROOT, Rig, running_rig
from tests.support.stage import WITHIN_S


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(tmp_path_factory.mktemp("bus")) as rig:
        yield rig


def exobus_bus(data_dir: str | Path, *arguments: str) -> subprocess.Popen[str]:
    """The command, started; it sees no other node than that in `data_dir`."""
    return subprocess.Popen(
        [sys.executable, "-m", "cli", "bus", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "EXOBUS_DATA_DIR": str(data_dir), "NO_COLOR": "1"},
    )


def outcome(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, output and complaints of a command that ends by itself."""
    output, complaints = process.communicate(timeout=WITHIN_S)
    return process.returncode, output, complaints


@contextmanager
def talking(rig: Rig) -> Iterator[None]:
    """Facts are published all the time while the block runs."""
    stopped = threading.Event()

    def talk() -> None:
        while not stopped.wait(0.02):
            rig.node.publish(Status("tiny", "it goes on"))

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(WITHIN_S)


def test_ls_names_actors_with_their_processes(rig: Rig) -> None:
    status, output, _ = outcome(exobus_bus(rig.config.data_dir, "ls"))
    assert status == 0
    assert ["gateway", str(rig.gateway.pid)] in [line.split() for line in output.splitlines()]
    assert NODE_ID in output


def test_ls_as_json_has_the_hubs_own_words(rig: Rig) -> None:
    _, output, _ = outcome(exobus_bus(rig.config.data_dir, "ls", "--json", "--node", "rig"))
    (state,) = json.loads(output)
    assert {"hub", "gateway", "node", "download", "topology"} <= {actor["name"] for actor in state["actors"]}


def test_sub_shows_facts_for_people_and_for_programs(rig: Rig) -> None:
    with talking(rig):
        status, line, _ = outcome(exobus_bus(rig.config.data_dir, "sub", "status", "--count", "1"))
        _, data, _ = outcome(exobus_bus(rig.config.data_dir, "sub", ">", "--count", "1", "--json"))
    assert status == 0
    assert f"{NODE_ID}/node  " in line
    assert 'text="it goes on"' in line
    assert json.loads(data)["header"]["kind"] in ("status", "actor.up")


def test_sub_taps_work_and_the_replies_to_it(rig: Rig) -> None:
    process = exobus_bus(rig.config.data_dir, "sub", "tap.topology.*", "--count", "2", "--json")
    seen: list[str] = []
    reader = threading.Thread(target=lambda: seen.extend(process.communicate(timeout=WITHIN_S)[0].splitlines()))
    reader.start()
    while reader.is_alive():
        httpx.get(f"{rig.url}/v1/topology")
    assert {json.loads(line)["topic"] for line in seen} == {"tap.topology.get", "tap.topology.state"}
    assert process.returncode == 0


def test_top_counts_by_kind(rig: Rig) -> None:
    with talking(rig):
        _, output, _ = outcome(exobus_bus(rig.config.data_dir, "top", "-n", "2", "--interval", "0.5", "--json"))
        _, table, _ = outcome(exobus_bus(rig.config.data_dir, "top", "-n", "1", "--interval", "0.5"))
    _, second = (json.loads(line) for line in output.splitlines())
    (row,) = (row for row in second if row["topic"] == "status")
    assert 5 < row["messages_per_s"] <= 60
    assert row["lost"] == 0
    assert table.splitlines()[0].split() == ["KIND", "MSG/S", "KB/S", "LOST"]


def test_a_pattern_that_is_none_ends_with_status_2(rig: Rig) -> None:
    status, _, complaint = outcome(exobus_bus(rig.config.data_dir, "sub", "a..b"))
    assert status == 2
    assert "no pattern" in complaint


def test_without_a_node_the_command_ends_with_status_3(tmp_path: Path) -> None:
    status, output, complaint = outcome(exobus_bus(tmp_path, "ls"))
    assert (status, output) == (3, "")
    assert "`exobus node`" in complaint


def test_a_node_with_a_data_folder_of_its_own_is_found_by_name(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EXOBUS_DATA_DIR", raising=False)
    assert rig.config.node_id in {node.node_id for node in running_nodes()}
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert running_nodes() == []


def test_a_node_of_another_name_is_told_by_the_names_there_are(rig: Rig) -> None:
    status, _, complaint = outcome(exobus_bus(rig.config.data_dir, "ls", "--node", "other"))
    assert status == 3
    assert "there is rig" in complaint
