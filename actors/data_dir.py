"""A node's data folder: its key, its logs, the lock against a second node in the same folder, and its run folder.

Both folders must be private: any process that can enter them counts as this user's. The run folder lies elsewhere,
because the path of a socket is limited to about 100 characters; `actors.run_folder` says where.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from actors.run_folder import PREFIX, NoRunFolder, new_run_folder, run_parents
from bus.net.keys import own_key_pair
from common.config import CONFIG_FILE, KEY_FILE, NodeConfig, read_config
from common.files import write_atomic
from common.private_files import FOR_OTHERS, PrivateFileError

RUN_FILE = "run"  # holds the path of the run folder
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class DataDirError(Exception):
    """The data folder cannot be used; the message is one sentence with the next step."""


class DataDirInUse(DataDirError):
    """Another node runs in the folder."""


@dataclass
class DataDir:
    """A locked data folder, with the run folder that belongs to it."""

    path: Path
    node_id: str
    run_dir: Path
    lock: FileLock

    @property
    def logs(self) -> Path:
        """The folder of the log files, one for each process."""
        return self.path / "logs"

    def close(self) -> None:
        """Remove the run folder and release the lock."""
        (self.path / RUN_FILE).unlink(missing_ok=True)
        shutil.rmtree(self.run_dir, ignore_errors=True)
        self.lock.release()


def check_name(name: str) -> str:
    """Return a node name that is safe in a path and an address. Raises DataDirError for any other."""
    if not _NAME.fullmatch(name):
        raise DataDirError(f"{name!r} is not a node name; use letters, digits, dots and dashes, at most 63")
    return name


def open_folder(path: Path) -> DataDir:
    """Lock a data folder, which is made if it does not exist, and make its run folder. Raises DataDirError."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_private(path)
        (path / "logs").mkdir(exist_ok=True, mode=0o700)
        lock = FileLock(path / "lock")
        lock.acquire(timeout=0)
    except Timeout:
        config = running_node(path)
        owner = f"node {config.name!r}" if config else "another node"
        raise DataDirInUse(f"{path} is in use by {owner}; stop it, or pass another --data-dir or --name") from None
    except OSError as error:
        raise _unwritable(path, error) from None
    with ExitStack() as undo:
        undo.callback(lock.release)
        try:
            node_id = own_key_pair(path / KEY_FILE).node_id
            _remove_stale_run_dir(path)
            run_dir = new_run_folder()
            undo.callback(shutil.rmtree, run_dir, ignore_errors=True)
            write_atomic(path / RUN_FILE, str(run_dir))
        except (PrivateFileError, NoRunFolder) as error:
            raise DataDirError(str(error)) from None
        except OSError as error:
            raise _unwritable(path, error) from None
        undo.pop_all()
    return DataDir(path, node_id, run_dir, lock)


def _unwritable(path: Path, error: OSError) -> DataDirError:
    return DataDirError(f"{path} cannot be written ({error.strerror}); pass another --data-dir")


def _check_private(folder: Path) -> None:
    """Raise DataDirError if others own the folder or may enter it."""
    status = folder.stat()
    if status.st_uid != os.getuid():
        raise DataDirError(f"{folder} belongs to another user; pass another --data-dir")
    if status.st_mode & FOR_OTHERS:
        raise DataDirError(
            f"{folder} is open to other users; make it yours alone with chmod 700, or pass another --data-dir"
        )


def _remove_stale_run_dir(path: Path) -> None:
    """Remove the run folder of a node that was killed: this process holds its lock, so it does not run any more.

    In a copy of a data folder, the file names the run folder of the original, which is left alone.
    """
    with suppress(OSError, ValueError):
        run_dir = Path((path / RUN_FILE).read_text())
        ours = run_dir.parent in run_parents() and run_dir.name.startswith(PREFIX)
        if ours and Path(read_config(run_dir).data_dir) == path:
            shutil.rmtree(run_dir)


def running_node(path: Path) -> NodeConfig | None:
    """Return the settings of the node that runs in this data folder, or None if none does."""
    try:
        run_dir = Path((path / RUN_FILE).read_text())
        return read_config(run_dir) if (run_dir / CONFIG_FILE).exists() and _is_locked(path) else None
    except (OSError, ValueError):
        return None


def _is_locked(path: Path) -> bool:
    lock = FileLock(path / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def open_first_free(parent: Path, name: str) -> DataDir:
    """Open the folder `parent/name`, or `name-2`, `name-3` … if nodes run there already. Raises DataDirError."""
    for number in range(1, 100):
        candidate = name if number == 1 else f"{name}-{number}"
        with suppress(DataDirInUse):
            return open_folder(parent / candidate)
    raise DataDirError(f"99 nodes named {name} run here already; pass --name")
