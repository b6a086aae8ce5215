"""How every command ends when it does not end well: one sentence on standard error, and an exit status."""

from __future__ import annotations

from typing import NoReturn

import typer

FAILED = 1
USAGE = 2
UNREACHABLE = 3


def leave(sentence: str, status: int) -> NoReturn:
    """Say why, and end the command."""
    typer.echo(f"exobus: {sentence}", err=True)
    raise typer.Exit(status)
