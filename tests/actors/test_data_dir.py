"""A node's data folder on a real file system: key, lock, run folder and permissions."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from actors.data_dir import DataDir, DataDirError, DataDirInUse, check_name, open_first_free, open_folder, running_node
from bus.net.keys import read_key_pair
from common.config import KEY_FILE, NodeConfig, write_config
from common.private_files import write_private
from tests.support.bus import ROOT
from tests.support.mounts import full, needs_mounts
from tests.support.nodes import clean_environment

_mkdir = os.mkdir


def config(folder: DataDir) -> NodeConfig:
    run_dir, data_dir = str(folder.run_dir), str(folder.path)
    return NodeConfig(node_id="a" * 16, name="kitchen", incarnation=1, run_dir=run_dir, data_dir=data_dir, cache_dir="")


def test_node_keeps_its_id(tmp_path: Path) -> None:
    ids = []
    for _ in range(2):
        folder = open_folder(tmp_path / "node")
        ids.append(folder.node_id)
        folder.close()
    assert ids[0] == ids[1]
    assert re.fullmatch(r"[0-9a-f]{16}", ids[0])


def test_id_is_that_of_a_private_key(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "node")
    folder.close()
    key = folder.path / KEY_FILE
    assert read_key_pair(key).node_id == folder.node_id
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_folder_open_to_others_is_left_empty(tmp_path: Path, mode: int) -> None:
    node = tmp_path / "node"
    node.mkdir()
    node.chmod(mode)
    with pytest.raises(DataDirError, match="node is open to other users; make it yours alone with chmod 700"):
        open_folder(node)
    assert not list(node.iterdir())
    node.chmod(0o700)
    open_folder(node).close()


def test_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(DataDirError, match="belongs to another user; pass another --data-dir"):
        open_folder(tmp_path)


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_readable_key_is_refused_and_unlocks_the_folder(tmp_path: Path, mode: int) -> None:
    open_folder(tmp_path).close()
    (tmp_path / KEY_FILE).chmod(mode)
    for _ in range(2):
        with pytest.raises(DataDirError, match=f"can be read by others; .* chmod 600 {tmp_path / KEY_FILE}"):
            open_folder(tmp_path)
    (tmp_path / KEY_FILE).chmod(0o600)
    open_folder(tmp_path).close()


def test_run_folder_without_file_modes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "mkdir", lambda path, mode=0o777, *, dir_fd=None: _mkdir(path, 0o755))
    (tmp_path / "node").mkdir()
    (tmp_path / "node").chmod(0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(DataDirError, match=r"open to other users\).* set TMPDIR to .* that keeps file modes"):
        open_folder(tmp_path / "node")
    assert [path.name for path in tmp_path.iterdir()] == ["node"]


def test_copied_folder_leaves_the_originals_run_folder(tmp_path: Path) -> None:
    original = open_folder(tmp_path / "node")
    write_config(config(original))
    shutil.copytree(original.path, tmp_path / "copy")
    (tmp_path / "copy").chmod(0o700)
    copy = open_folder(tmp_path / "copy")
    assert copy.node_id == original.node_id
    assert running_node(original.path) == config(original)
    copy.close()
    original.close()


def test_two_folders_have_two_ids(tmp_path: Path) -> None:
    folders = [open_folder(tmp_path / name) for name in ("one", "two")]
    assert folders[0].node_id != folders[1].node_id
    for folder in folders:
        folder.close()


def test_folder_in_use_is_refused_naming_its_node(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    with pytest.raises(DataDirInUse, match=r"is in use by another node; stop it, or pass another --data-dir or --name"):
        open_folder(tmp_path)
    write_config(config(folder))
    with pytest.raises(DataDirInUse, match="is in use by node 'kitchen'"):
        open_folder(tmp_path)
    folder.close()
    open_folder(tmp_path).close()


def test_run_folder_is_private_and_removed_afterwards(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    assert stat.S_IMODE(folder.run_dir.stat().st_mode) == 0o700
    assert len(f"{folder.run_dir}/engine-1000.ring") < 100
    folder.close()
    assert not folder.run_dir.exists()
    assert not (tmp_path / "run").exists()


def test_running_node_is_found_by_its_folder(tmp_path: Path) -> None:
    assert running_node(tmp_path) is None
    folder = open_folder(tmp_path)
    assert running_node(tmp_path) is None
    write_config(config(folder))
    assert running_node(tmp_path) == config(folder)
    folder.close()
    assert running_node(tmp_path) is None


def test_run_folder_of_a_killed_node_is_removed(tmp_path: Path) -> None:
    killed = open_folder(tmp_path)
    write_config(config(killed))
    killed.lock.release()  # all that is left of a lock after SIGKILL
    assert running_node(tmp_path) is None
    open_folder(tmp_path).close()
    assert not killed.run_dir.exists()


@pytest.mark.parametrize("name", ["exobus-precious", "precious"])
def test_only_a_run_folder_is_removed(tmp_path: Path, name: str) -> None:
    node = open_folder(tmp_path / "node")
    node.close()
    precious = tmp_path / name if name.startswith("exobus-") else Path(tempfile.mkdtemp(prefix=name))
    precious.mkdir(exist_ok=True)
    write_config(config(replace(node, run_dir=precious)))
    (tmp_path / "node" / "run").write_text(str(precious))
    open_folder(tmp_path / "node").close()
    assert precious.exists()
    shutil.rmtree(precious)


def test_next_node_of_a_name_gets_a_number(tmp_path: Path) -> None:
    folders = [open_first_free(tmp_path, "mac") for _ in range(3)]
    assert [folder.path.name for folder in folders] == ["mac", "mac-2", "mac-3"]
    folders[1].close()
    again = open_first_free(tmp_path, "mac")
    assert again.path.name == "mac-2"
    assert again.node_id == folders[1].node_id
    for folder in (folders[0], folders[2], again):
        folder.close()


def test_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataDirError, match=r"file/node cannot be written \(Not a directory\); pass another --data-dir"):
        open_folder(tmp_path / "file" / "node")


@needs_mounts
def test_full_disk_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        full(tmp_path, sys.executable, "-m", "cli", "node", "--data-dir", str(tmp_path / "node")),
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    (sentence,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot be written (No space left on device)" in sentence


@needs_mounts
def test_disk_that_fills_up_later_is_one_sentence(tmp_path: Path) -> None:
    """The key is there; what cannot be written is the path of the run folder."""
    code = "from pathlib import Path; from actors.data_dir import open_folder; open_folder(Path({!r})){}"
    node = str(tmp_path / "node")
    make, again = code.format(node, ".close()"), code.format(node, "")
    made = f"rm {tmp_path}/filling; {sys.executable} -c {shlex.quote(make)}"
    filled = f"head -c 1M /dev/zero > {tmp_path}/filling; exec {sys.executable} -c {shlex.quote(again)}"
    command = full(tmp_path, "sh", "-c", f"{made}; {filled}")
    with tempfile.TemporaryDirectory() as temporary:
        environment = os.environ | {"TMPDIR": temporary}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
        left = [path for path in Path(temporary).glob("exobus-*") if not list(path.iterdir())]
    assert f"DataDirError: {node} cannot be written (No space left on device); pass another" in done.stderr
    assert not left


def test_damaged_key_is_refused_and_unlocks_the_folder(tmp_path: Path) -> None:
    write_private(tmp_path / KEY_FILE, "not a key")
    for _ in range(2):
        with pytest.raises(DataDirError, match="holds no key; restore it, or delete it to become a new node"):
            open_folder(tmp_path)
    os.unlink(tmp_path / KEY_FILE)
    open_folder(tmp_path).close()


@pytest.mark.parametrize("name", ["a", "kitchen-mac.local", "Node_7", "x" * 63])
def test_names_for_paths_and_addresses_are_accepted(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "..", ".hidden", "-x", "a/b", "a b", "x" * 64, "é", "a\n"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(DataDirError, match="is not a node name; use letters, digits"):
        check_name(name)
