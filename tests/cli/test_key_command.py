"""`exobus key`, and the commands as clients of a gateway that needs a key."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.http.api_keys import read_keys
from tests.gateway.http.test_api_keys import ONE, THREE, TWO, key_file
from tests.support.commands import exobus
from tests.support.gateway.gateway_rig import MODEL, Rig, running_rig
from tests.support.gateway.text_stage import WITHIN_S

COMMANDS = [["run", MODEL, "hello"], ["run", MODEL, "hello", "--json"], ["models", "ls"], ["topology"]]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("cli-keys")
    with running_rig(folder, api_keys=str(key_file(folder, ONE, TWO))) as rig:
        rig.set_script("Hello world")
        yield rig


# -- exobus key


def test_new_key_is_printed_and_stored_privately(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    made = [exobus("key", str(path)).stdout.strip() for _ in range(2)]
    assert read_keys(path) == (tuple(made), "")
    assert len(set(made)) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_new_key_has_its_own_line(tmp_path: Path) -> None:
    path = key_file(tmp_path, "# mine")
    path.write_text(f"# mine\n{ONE}")
    made = json.loads(exobus("key", str(path), "--json").stdout)
    assert read_keys(path).keys == (ONE, made["key"])
    assert made["file"] == str(path)


def test_readable_or_unwritable_file_gets_no_key(tmp_path: Path) -> None:
    path = key_file(tmp_path, ONE)
    path.chmod(0o644)
    open_to_all = exobus("key", str(path))
    assert (open_to_all.returncode, open_to_all.stdout) == (1, "")
    assert f"chmod 600 {path}" in open_to_all.stderr
    assert path.read_text() == f"{ONE}\n"
    nowhere = exobus("key", str(tmp_path / "no" / "keys"))
    assert (nowhere.returncode, nowhere.stdout) == (1, "")
    assert "cannot be written" in nowhere.stderr


# -- as clients


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_given_key_is_sent(rig: Rig, command: list[str]) -> None:
    assert exobus(*command, "--api", rig.url, "--api-key", TWO).returncode == 0
    assert exobus(*command, "--api", rig.url, EXOBUS_API_KEY=f" {ONE} ").returncode == 0


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_key_of_a_local_node_is_found(rig: Rig, command: list[str]) -> None:
    assert exobus(*command, EXOBUS_DATA_DIR=rig.config.data_dir).returncode == 0
    assert exobus(*command, "--api", rig.url + "/", EXOBUS_DATA_DIR=rig.config.data_dir).returncode == 0


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_missing_key_ends_with_the_next_step(rig: Rig, command: list[str], tmp_path: Path) -> None:
    result = exobus(*command, "--api", rig.url, EXOBUS_DATA_DIR=str(tmp_path))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"exobus: the gateway at {rig.url} needs an API key; pass --api-key, or set EXOBUS_API_KEY\n"
    )


def test_wrong_key_is_not_replaced_by_another(rig: Rig) -> None:
    result = exobus("models", "ls", "--api-key", THREE, EXOBUS_DATA_DIR=rig.config.data_dir)
    assert (result.returncode, result.stdout) == (1, "")
    assert "does not accept this API key" in result.stderr
    assert THREE not in result.stderr


@pytest.mark.parametrize("key", ["with\nline", "with blank", "ключ"])
def test_malformed_key_ends_with_status_2(rig: Rig, key: str) -> None:
    result = exobus("models", "ls", "--api", rig.url, "--api-key", key)
    assert result.returncode == 2
    assert key not in result.stderr


@contextmanager
def eavesdropper() -> Iterator[tuple[str, list[bytes]]]:
    """Run a server that is no gateway. Yields its URL, and the requests that it received."""
    received: list[bytes] = []

    def listen() -> None:
        client, _ = server.accept()
        with client:
            client.settimeout(WITHIN_S)
            received.append(client.recv(1 << 16))
            client.sendall(b"HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", received
        thread.join(WITHIN_S)


def test_local_nodes_key_is_sent_nowhere_else(rig: Rig) -> None:
    with eavesdropper() as (url, received):
        result = exobus("models", "ls", "--api", url, EXOBUS_DATA_DIR=rig.config.data_dir)
    assert result.returncode == 1
    assert received[0].startswith(b"GET /v1/models")
    assert b"authorization" not in received[0].lower()
    assert ONE.encode() not in received[0]


def test_unreadable_key_file_counts_as_no_key(rig: Rig) -> None:
    path = Path(rig.config.api_keys)
    path.chmod(0o644)
    try:
        result = exobus("models", "ls", EXOBUS_DATA_DIR=rig.config.data_dir)
    finally:
        os.chmod(path, 0o600)
    assert result.returncode == 1
    assert "needs an API key" in result.stderr
