"""Where a run folder is made, and how it survives a cleaner: real folders, files and sockets."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actors.run_folder import TOUCH_EVERY_S, NoRunFolder, RunFolder, new_run_folder, owner_of_socket, run_parents
from bus.net.endpoints import LONGEST_NAME, HubPaths, fits_ipc
from tests.support.bus import ROOT
from tests.support.mounts import full, needs_mounts

TEMPORARY = Path("/tmp")  # noqa: S108 - the second choice of a node


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a short folder that is the first choice."""
    with tempfile.TemporaryDirectory(dir=TEMPORARY, prefix="p-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@contextmanager
def bound(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        yield


@pytest.fixture
def folder(parent: Path) -> Path:
    """Make a run folder with a file and the sockets of two processes."""
    path = new_run_folder()
    (path / "node.json").write_text("settings")
    return path


def test_temporary_folder_comes_first(parent: Path) -> None:
    made = new_run_folder()
    assert made.parent == parent
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert list(made.iterdir()) == []


@pytest.mark.parametrize("length", [72, 73, 90, 200])
def test_long_temporary_folder_is_passed_over(parent: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    long = parent / ("x" * (length - len(str(parent)) - 1))
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    made = new_run_folder()
    try:
        assert (made.parent == long) == (length == 72)
        with bound(made / LONGEST_NAME):
            pass
    finally:
        shutil.rmtree(made)


@pytest.mark.parametrize("name", ["missing", "file", "bytes\udcff"])
def test_unusable_temporary_folder_is_passed_over(parent: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (parent / "file").write_text("in the way")
    os.mkdir(parent / "bytes\udcff")
    monkeypatch.setattr(tempfile, "tempdir", str(parent / name))
    made = new_run_folder()
    made.rmdir()
    assert made.parent == TEMPORARY


def test_runtime_folder_is_the_last_resort(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    assert run_parents() == [parent, TEMPORARY, Path("/run/user/1")]


def test_without_any_folder_each_reason_is_said(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.run_folder.run_parents", lambda: [parent / "none", parent / ("x" * 100)])
    with pytest.raises(
        NoRunFolder, match=r"none': No such file or directory; .*/x+': its path is too long.* set TMPDIR"
    ):
        new_run_folder()


@needs_mounts
def test_full_temporary_folder_is_passed_over(parent: Path) -> None:
    code = "from actors.run_folder import new_run_folder as new; folder = new(); print(folder.parent); folder.rmdir()"
    command = full(parent, "env", f"TMPDIR={parent}", sys.executable, "-c", code)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{TEMPORARY}\n", "")


def test_path_of_every_socket_is_measured() -> None:
    assert all(len(path) <= len(f"ipc:///x/{LONGEST_NAME}") for path in vars(HubPaths(Path("/x"))).values())
    assert fits_ipc(Path("/" + "x" * (107 - len(LONGEST_NAME) - 2))) or sys.platform == "darwin"
    assert not fits_ipc(Path("/" + "x" * (107 - len(LONGEST_NAME) - 1)))
    assert not fits_ipc(Path("/" + "é" * 50))


# -- while the node runs


def test_removed_file_is_restored_as_it_was_last(folder: Path) -> None:
    kept = RunFolder(folder)
    assert kept.keep(0.0) == set()
    (folder / "node.json").write_text("newer settings")
    kept.keep(2.0)
    (folder / "node.json").unlink()
    assert kept.keep(4.0) == set()
    assert (folder / "node.json").read_text() == "newer settings"


def test_removed_socket_is_reported_once(folder: Path) -> None:
    kept = RunFolder(folder)
    with bound(folder / "work"), bound(folder / "engine-1.ring"), bound(folder / "gateway.ring"):
        kept.keep(0.0)
        for name in ("work", "engine-1.ring"):
            (folder / name).unlink()
        assert kept.keep(2.0) == set(), "it may be a process that starts again"
        assert kept.keep(4.0) == {"hub", "engine-1"}
        assert kept.keep(6.0) == set()


def test_socket_that_is_bound_again_is_not_missed(folder: Path) -> None:
    kept = RunFolder(folder)
    with bound(folder / "work"):
        kept.keep(0.0)
        (folder / "work").unlink()
        kept.keep(2.0)
    with bound(folder / "work"):
        assert kept.keep(4.0) == set()
        assert kept.keep(6.0) == set()


def test_removed_folder_is_made_again(folder: Path) -> None:
    kept = RunFolder(folder)
    with bound(folder / "facts-in"):
        kept.keep(0.0)
        shutil.rmtree(folder)
        kept.keep(2.0)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert (folder / "node.json").read_text() == "settings"
        assert kept.keep(4.0) == {"hub"}


@pytest.mark.parametrize("taken", ["open folder", "link", "file"])
def test_foreign_folder_in_its_place_is_refused(folder: Path, taken: str) -> None:
    kept = RunFolder(folder)
    kept.keep(0.0)
    shutil.rmtree(folder)
    if taken == "open folder":
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)
    elif taken == "link":
        folder.symlink_to("/")
    else:
        folder.write_text("")
    with pytest.raises(OSError, match="it is not this user's alone"):
        kept.keep(2.0)


def test_old_files_are_touched_each_hour(folder: Path) -> None:
    kept = RunFolder(folder)
    kept.keep(0.0)
    with bound(folder / "work"):
        entries = [folder, folder / "node.json", folder / "work"]
        for path in entries:
            os.utime(path, (1.0, 1.0))
        kept.keep(TOUCH_EVERY_S - 1)
        assert {path.stat().st_mtime for path in entries} == {1.0}
        kept.keep(TOUCH_EVERY_S)
        assert all(min(path.stat().st_atime, path.stat().st_mtime) > 1.0 for path in entries)


@pytest.mark.parametrize(
    ("name", "owner"),
    [("facts-in", "hub"), ("work", "hub"), ("gateway.ring", "gateway"), ("engine-12.ring", "engine-12")],
)
def test_socket_belongs_to_the_process_that_binds_it(name: str, owner: str) -> None:
    assert owner_of_socket(name) == owner
