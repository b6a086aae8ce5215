"""The run folder of a node: where it lies, and how it is kept while the node runs.

It holds the ipc endpoints and the node's settings. The folder for temporary files comes first, since XDG_RUNTIME_DIR is
removed when its user logs out, which a node in the background outlives. Programs that clean the temporary folder spare
what was touched lately; what is removed all the same is made again.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from bus.net.endpoints import fits_ipc
from common.config import CONFIG_FILE
from common.files import write_atomic
from common.private_files import is_private

PREFIX = "exobus-"
TOUCH_EVERY_S = 3600.0
_NEEDED_BYTES = 64 << 10  # for the settings, the API's address and a little more


class NoRunFolder(Exception):
    """No folder can be the run folder; the message is one sentence with the next step."""


def run_parents() -> list[Path]:
    """Return the folders in which a run folder may lie, in order of preference. Some may not exist."""
    parents = ["/tmp", os.environ.get("XDG_RUNTIME_DIR", "")]  # noqa: S108 - mkdtemp is used there
    with suppress(FileNotFoundError):  # no folder for temporary files can be written
        parents.insert(0, tempfile.gettempdir())
    return list(dict.fromkeys(Path(parent) for parent in parents if parent))


def new_run_folder() -> Path:
    """Make a run folder in the first place that can have one. Raises NoRunFolder."""
    reasons = []
    for parent in run_parents():
        try:
            return _new_in(parent)
        except OSError as error:
            reasons.append(f"{str(parent)!r}: {error.strerror}")
    raise NoRunFolder(
        f"no folder can hold this node's sockets ({'; '.join(reasons)}); "
        "set TMPDIR to a folder with a short path, some room, and a file system that keeps file modes"
    )


def _new_in(parent: Path) -> Path:
    """Make a run folder in `parent`, and write to it as much as a node will. Raises OSError."""
    if not fits_ipc(parent / f"{PREFIX}12345678"):
        raise OSError(0, "its path is too long for a socket")
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    try:
        if not is_private(folder.lstat()):
            raise OSError(0, "a folder there is open to other users")
        write_atomic(folder / CONFIG_FILE, bytes(_NEEDED_BYTES))
        (folder / CONFIG_FILE).unlink()
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


class RunFolder:
    """Keeps a run folder as it was: it touches all in it, restores its files, and finds sockets that were removed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, bytes] = {}
        self._sockets: dict[str, bool] = {}  # by name: whether it was there at the last check
        self._touched_at = float("-inf")

    def keep(self, now: float) -> set[str]:
        """Check the folder at the monotonic time `now`, and restore what is missing of it but its sockets.

        Returns the processes that lacked their sockets at this check and the one before: only they can bind them
        again. Raises OSError if the folder is gone and cannot be made, or is not this user's alone.
        """
        with suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        status = self.path.lstat()
        if not (stat.S_ISDIR(status.st_mode) and is_private(status)):
            raise OSError(0, "it is not this user's alone", str(self.path))
        self._keep_files()
        if now - self._touched_at >= TOUCH_EVERY_S:
            self._touched_at = now
            self._touch()
        return self._lost_sockets()

    def _keep_files(self) -> None:
        """Restore the files that were there before. On a full disk that succeeds at a later check."""
        for name, content in self._files.items():
            if not (self.path / name).exists():
                with suppress(OSError):
                    write_atomic(self.path / name, content)
        for path in self._entries():
            with suppress(OSError):
                if path.is_file() and path.suffix != ".part":
                    self._files[path.name] = path.read_bytes()

    def _touch(self) -> None:
        for path in (*self._entries(), self.path):
            with suppress(OSError):  # it may be removed at this moment
                os.utime(path)

    def _lost_sockets(self) -> set[str]:
        present = {path.name for path in self._entries() if path.is_socket()}
        lost = {name for name, before in self._sockets.items() if not before and name not in present}
        self._sockets = {name: name in present for name in (self._sockets.keys() | present) - lost}
        return {owner_of_socket(name) for name in lost}

    def _entries(self) -> list[Path]:
        with suppress(OSError):
            return list(self.path.iterdir())
        return []


def owner_of_socket(name: str) -> str:
    """Return the process that binds a socket of the run folder: `NAME.ring` is of NAME, the others are the hub's."""
    process, dot, _ = name.partition(".")
    return process if dot else "hub"
