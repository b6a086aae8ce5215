"""Which cluster a node starts in: the join code that it is given, or the one that it kept, or none.

The code goes from here to one file and nowhere else: no log, no settings, no child's environment. Opens no socket.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cli.code_file import code_file, read_code, store_code
from cluster.join_code import JoinCode, JoinCodeError, parse_join_code
from common.private_files import read_private, write_private

JOIN_VARIABLE = "EXOBUS_JOIN"
SEEN = (
    "warning: other users of this machine can see a join code on the command line; it is kept now, so the next start "
    f"needs no --join (a file's path, or {JOIN_VARIABLE}, shows nothing)"
)


def take_from_environment() -> str:
    """What EXOBUS_JOIN says, if anything. It is gone from the environment then, so that no child inherits it."""
    return os.environ.pop(JOIN_VARIABLE, "").strip()


def is_code(text: str) -> bool:
    """Whether a text is a join code itself, and not a file's path."""
    try:
        parse_join_code(text)
    except JoinCodeError:
        return False
    return True


def given_code(text: str) -> JoinCode:
    """The code that `text` is, or that lies in the file of that path. Raises JoinCodeError or PrivateFileError."""
    try:
        return parse_join_code(text)
    except JoinCodeError:
        if os.path.exists(path := Path(text).expanduser()):
            return parse_join_code(read_private(path))
        raise


def kept_code(data_dir: Path | None) -> JoinCode | None:
    """Return the code that is kept for a data folder. Raises PrivateFileError, or JoinCodeError with the path."""
    path = code_file(data_dir)
    try:
        return read_code(path)
    except JoinCodeError as error:
        raise JoinCodeError(f"the join code in {path} cannot be used: {error}") from None


def keep_code(data_dir: Path | None, given: JoinCode) -> JoinCode:
    """Keep a code that was given, for the next start; the code to use. It takes the place of an old one.

    A code is taken once: a start script would else bring back the old one after the cluster's owner made a new one.
    Raises JoinCodeError where another cluster's is kept, PrivateFileError.
    """
    path, digest = code_file(data_dir), hashlib.sha256(given.text().encode()).hexdigest()
    taken = path.with_name(path.name + ".taken")
    kept = kept_code(data_dir)
    if kept and kept.name == given.name and taken.exists() and read_private(taken) == digest:
        return kept
    store_code(path, given)
    write_private(taken, digest)
    return given
