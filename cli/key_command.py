"""`exobus key`: a new API key, in the file that a node's gateway reads."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from cli.options import FAILED, JsonOption, leave
from common.private_files import is_private


def key(
    file: Annotated[Path, typer.Argument(help="File of API keys, one a line; it is made if it does not exist.")],
    as_json: JsonOption = False,
) -> None:
    """Make an API key and add it to a file."""
    made = f"exobus-{secrets.token_urlsafe(32)}"
    try:
        _append(file, made)
    except OSError as error:
        leave(f"the key cannot be written to {file} ({error.strerror}); name another file", FAILED)
    typer.echo(json.dumps({"key": made, "file": str(file)}) if as_json else made)
    typer.echo(f"added to {file}; a node that was started with --api-keys {file} takes it from now on", err=True)


def _append(file: Path, made: str) -> None:
    with open(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600), "r+b") as keys:
        if not is_private(os.fstat(keys.fileno())):
            leave(f"{file} can be read or written by others; run: chmod 600 {file}", FAILED)
        before = keys.read()
        keys.write((b"" if not before or before.endswith(b"\n") else b"\n") + made.encode() + b"\n")
