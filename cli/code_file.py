"""Where a join code lies: with a data folder of its own in that folder, else one for all nodes of this user here."""

from __future__ import annotations

from pathlib import Path

from cli.local_nodes import default_parent
from cluster.join_code import JoinCode, JoinCodeError, parse_join_code
from common.private_files import read_private, write_private

CODE_FILE = "join-code"


def code_file(data_dir: Path | None) -> Path:
    """The file for a node of that data folder; None: the user's own."""
    folder = default_parent().parent if data_dir is None else data_dir.expanduser().absolute()
    return folder / CODE_FILE


def read_code(path: Path) -> JoinCode | None:
    """The code in a file, if there is the file. Raises PrivateFileError, or JoinCodeError for what is none."""
    return parse_join_code(read_private(path)) if path.exists() else None


def store_code(path: Path, code: JoinCode) -> None:
    """Keep a code that was given. Raises JoinCodeError where another cluster's is kept, PrivateFileError."""
    kept = read_code(path)
    if kept is not None and kept.name != code.name:
        raise JoinCodeError(
            f"{path} holds the join code of cluster {kept.name}; to join {code.name} instead, move that file away"
        )
    if kept != code:
        write_private(path, code.text())
