"""A node's data folder: identity, lock and run folder, on a real file system."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from actors.node_folder import FolderError, FolderInUse, check_name, first_free, open_folder, running_node
from bus.config import NodeConfig, write_config


def config(run_dir: Path, name: str = "kitchen") -> NodeConfig:
    return NodeConfig(node_id="a" * 16, name=name, incarnation=1, run_dir=str(run_dir), data_dir="", cache_dir="")


def test_a_node_keeps_its_id(tmp_path: Path) -> None:
    ids = []
    for _ in range(2):
        folder = open_folder(tmp_path / "node")
        ids.append(folder.node_id)
        folder.close()
    assert ids[0] == ids[1]
    assert re.fullmatch(r"[0-9a-f]{16}", ids[0])


def test_two_folders_have_two_ids(tmp_path: Path) -> None:
    folders = [open_folder(tmp_path / name) for name in ("one", "two")]
    assert folders[0].node_id != folders[1].node_id
    for folder in folders:
        folder.close()


def test_a_folder_that_is_in_use_is_refused_by_the_name_of_its_node(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    with pytest.raises(FolderInUse, match=r"is in use by another node; stop it, or pass another --data-dir or --name"):
        open_folder(tmp_path)
    write_config(config(folder.run_dir))
    with pytest.raises(FolderInUse, match="is in use by node 'kitchen'"):
        open_folder(tmp_path)
    folder.close()
    open_folder(tmp_path).close()


def test_the_run_folder_is_private_and_goes_with_the_node(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    assert stat.S_IMODE(folder.run_dir.stat().st_mode) == 0o700
    assert len(f"{folder.run_dir}/engine-1000.ring") < 100
    folder.close()
    assert not folder.run_dir.exists()
    assert not (tmp_path / "run").exists()


def test_a_running_node_is_found_by_its_folder(tmp_path: Path) -> None:
    assert running_node(tmp_path) is None
    folder = open_folder(tmp_path)
    assert running_node(tmp_path) is None
    write_config(config(folder.run_dir))
    assert running_node(tmp_path) == config(folder.run_dir)
    folder.close()
    assert running_node(tmp_path) is None


def test_what_a_killed_node_left_behind_is_no_running_node_and_is_cleared(tmp_path: Path) -> None:
    killed = open_folder(tmp_path)
    write_config(config(killed.run_dir))
    killed.lock.release()  # all that is left of a lock after SIGKILL
    assert running_node(tmp_path) is None
    open_folder(tmp_path).close()
    assert not killed.run_dir.exists()


def test_only_a_run_folder_is_cleared(tmp_path: Path) -> None:
    precious = tmp_path / "exobus-precious"
    precious.mkdir()
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "run").write_text(str(precious))
    open_folder(tmp_path / "node").close()
    assert precious.exists()


def test_the_next_node_of_a_name_gets_a_number(tmp_path: Path) -> None:
    folders = [first_free(tmp_path, "mac") for _ in range(3)]
    assert [folder.path.name for folder in folders] == ["mac", "mac-2", "mac-3"]
    folders[1].close()
    again = first_free(tmp_path, "mac")
    assert again.path.name == "mac-2"
    assert again.node_id == folders[1].node_id
    for folder in (folders[0], folders[2], again):
        folder.close()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FolderError, match=r"file/node cannot be written \(Not a directory\); pass another --data-dir"):
        open_folder(tmp_path / "file" / "node")


def test_a_damaged_identity_is_refused_and_the_folder_stays_free(tmp_path: Path) -> None:
    (tmp_path / "node-id").write_text("not an id")
    for _ in range(2):
        with pytest.raises(FolderError, match="holds no node id; restore it, or delete it to become a new node"):
            open_folder(tmp_path)
    os.unlink(tmp_path / "node-id")
    open_folder(tmp_path).close()


@pytest.mark.parametrize("name", ["a", "kitchen-mac.local", "Node_7", "x" * 63])
def test_names_for_paths_and_addresses_are_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "..", ".hidden", "-x", "a/b", "a b", "x" * 64, "é", "a\n"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(FolderError, match="is no node name; use letters, digits"):
        check_name(name)
