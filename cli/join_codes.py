"""The join codes on this machine: where a code is kept, and which code a node starts with.

A node with a data folder of its own keeps its code there; all other nodes of this user share one file. A code goes into
that file and nowhere else: not into a log, the settings or the environment of a child.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cli.local_nodes import default_parent
from cluster.join_code import JoinCode, JoinCodeError, parse_join_code
from common.private_files import read_private, write_private

CODE_FILE = "join-code"
JOIN_VARIABLE = "EXOBUS_JOIN"
CODE_IS_VISIBLE = (
    "warning: other users of this machine can see a join code on the command line; it is kept now, so the next start "
    f"needs no --join (a file's path, or {JOIN_VARIABLE}, shows nothing)"
)


def code_file(data_dir: Path | None) -> Path:
    """Return the path of the code for a node of that data folder; None is the user's shared file."""
    folder = default_parent().parent if data_dir is None else data_dir.expanduser().absolute()
    return folder / CODE_FILE


def take_from_environment() -> str:
    """Return EXOBUS_JOIN, or an empty string, and remove it from the environment, so that no child inherits it."""
    return os.environ.pop(JOIN_VARIABLE, "").strip()


def is_code(text: str) -> bool:
    """Return whether a text is a join code itself, and not the path of a file."""
    try:
        parse_join_code(text)
    except JoinCodeError:
        return False
    return True


def given_code(text: str) -> JoinCode:
    """Parse a code, or read it from the file of that path. Raises JoinCodeError or PrivateFileError."""
    try:
        return parse_join_code(text)
    except JoinCodeError:
        if os.path.exists(path := Path(text).expanduser()):
            return parse_join_code(read_private(path))
        raise


def kept_code(data_dir: Path | None) -> JoinCode | None:
    """Return the code that is kept for a data folder, or None. Raises PrivateFileError or JoinCodeError."""
    path = code_file(data_dir)
    try:
        return parse_join_code(read_private(path)) if path.exists() else None
    except JoinCodeError as error:
        raise JoinCodeError(f"the join code in {path} cannot be used: {error}") from None


def keep_code(data_dir: Path | None, given: JoinCode) -> JoinCode:
    """Keep a given code for the next start, and return the code to use.

    A given code replaces an older one of the same cluster, but only the first time: a start script would otherwise
    bring back the old code after the cluster's owner has made a new one.
    Raises JoinCodeError if the code of another cluster is kept, or PrivateFileError.
    """
    path, digest = code_file(data_dir), hashlib.sha256(given.text().encode()).hexdigest()
    taken = path.with_name(path.name + ".taken")
    kept = kept_code(data_dir)
    if kept and kept.name != given.name:
        raise JoinCodeError(
            f"{path} holds the join code of cluster {kept.name}; to join {given.name} instead, move that file away"
        )
    if kept and taken.exists() and read_private(taken) == digest:
        return kept
    if kept != given:
        write_private(path, given.text())
    write_private(taken, digest)
    return given
