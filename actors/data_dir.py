"""A node's data folder: its key, its logs, the lock that keeps two nodes out of one folder, and its run folder.

Knows files only. Both folders are this user's alone: who can enter them is taken for this user. The run folder holds
the ipc end points; it lies in the system's temporary folder because a socket's path may have no more than about 100
characters.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from bus.net.keys import own_key_pair
from common.config import CONFIG_FILE, KEY_FILE, NodeConfig, read_config
from common.private_files import PrivateFileError

_RUN_PREFIX = "exobus-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class DataDirError(Exception):
    """The data folder cannot be used; the message is one sentence with the next step."""


class DataDirInUse(DataDirError):
    """Another node runs in the folder."""


@dataclass
class DataDir:
    """A locked data folder. `close` gives it back and removes the run folder."""

    path: Path
    node_id: str
    run_dir: Path
    lock: FileLock

    @property
    def logs(self) -> Path:
        """Where the node's processes write."""
        return self.path / "logs"

    def close(self) -> None:
        """Remove the run folder and unlock."""
        (self.path / "run").unlink(missing_ok=True)
        shutil.rmtree(self.run_dir, ignore_errors=True)
        self.lock.release()


def check_name(name: str) -> str:
    """A node name that is safe in a path and an address. Raises DataDirError."""
    if not _NAME.fullmatch(name):
        raise DataDirError(f"{name!r} is no node name; use letters, digits, dots and dashes, at most 63")
    return name


def open_folder(path: Path) -> DataDir:
    """Lock a data folder, made where it does not exist. Raises DataDirError."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_private(path, "pass another --data-dir")
        (path / "logs").mkdir(exist_ok=True, mode=0o700)
        lock = FileLock(path / "lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise DataDirInUse(
            f"{path} is in use by {_owner(path)}; stop it, or pass another --data-dir or --name"
        ) from None
    except OSError as error:
        raise DataDirError(f"{path} cannot be written ({error.strerror}); pass another --data-dir") from None
    try:
        node_id = own_key_pair(path / KEY_FILE).node_id
        _clear_left_behind(path)
        run_dir = _new_run_dir()
        (path / "run").write_text(str(run_dir))
    except PrivateFileError as error:
        lock.release()
        raise DataDirError(str(error)) from None
    except BaseException:
        lock.release()
        raise
    return DataDir(path, node_id, run_dir, lock)


def _check_private(folder: Path, otherwise: str) -> None:
    """Raises DataDirError, which ends with what to do `otherwise`, where other users own the folder or may enter it."""
    status = folder.stat()
    if status.st_uid != os.getuid():
        raise DataDirError(f"{folder} belongs to another user; {otherwise}")
    if status.st_mode & 0o077:
        raise DataDirError(f"{folder} is open to other users; make it yours alone with chmod 700, or {otherwise}")


def _new_run_dir() -> Path:
    """Where the ipc end points will lie. Some file systems know no modes; such a one lets anybody in."""
    run_dir = Path(tempfile.mkdtemp(prefix=_RUN_PREFIX))
    try:
        _check_private(run_dir, "set TMPDIR to a folder on another file system")
    except DataDirError:
        run_dir.rmdir()
        raise
    return run_dir


def _clear_left_behind(path: Path) -> None:
    """Remove the run folder of a node that was killed: we hold its lock, so it is not there any more.

    In a copy of a data folder, the run folder is still that of the original's node.
    """
    with suppress(OSError, ValueError):
        run_dir = Path((path / "run").read_text())
        ours = run_dir.parent == Path(tempfile.gettempdir()) and run_dir.name.startswith(_RUN_PREFIX)
        if ours and Path(read_config(run_dir).data_dir) == path:
            shutil.rmtree(run_dir)


def _owner(path: Path) -> str:
    config = running_node(path)
    return f"node {config.name!r}" if config else "another node"


def running_node(path: Path) -> NodeConfig | None:
    """The settings of the node that runs in this data folder, if one does."""
    try:
        run_dir = Path((path / "run").read_text())
        return read_config(run_dir) if (run_dir / CONFIG_FILE).exists() and _locked(path) else None
    except (OSError, ValueError):
        return None


def _locked(path: Path) -> bool:
    lock = FileLock(path / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def first_free(parent: Path, name: str) -> DataDir:
    """The folder `parent/name`, or with -2, -3 … where nodes of that name run already. Raises DataDirError."""
    for number in range(1, 100):
        candidate = name if number == 1 else f"{name}-{number}"
        with suppress(DataDirInUse):
            return open_folder(parent / candidate)
    raise DataDirError(f"99 nodes named {name} run here already; pass --name")
