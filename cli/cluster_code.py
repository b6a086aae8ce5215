"""`exobus cluster init` and `invite`: the join code on this machine. Talks to no node."""

from __future__ import annotations

from pathlib import Path

import typer

from cli.code_file import code_file, read_code
from cli.exit_codes import FAILED, USAGE, leave
from cluster.join_code import JoinCode, JoinCodeError, new_join_code
from cluster.roles import Role
from common.private_files import PrivateFileError, write_private

ALLOWS = {
    Role.MEMBER: "a member: it holds layers, places models, invites and shuts out",
    Role.GATEWAY: "a gateway: it sends chats and holds no layers",
    Role.OBSERVER: "an observer: it hears what happens and asks, and sends no work",
}


def init(name: str, data_dir: Path | None) -> None:
    """Make a cluster; an existing join code is never overwritten."""
    path = code_file(data_dir)
    try:
        code = new_join_code(name)
    except JoinCodeError as error:
        leave(str(error), USAGE)
    if kept := _kept(path):
        leave(
            f"{path} holds the join code of cluster {kept.name} already; print it with `exobus cluster invite`, or "
            "move that file away first",
            FAILED,
        )
    try:
        write_private(path, code.text())
    except PrivateFileError as error:
        leave(str(error), FAILED)
    typer.echo(code.text())
    typer.echo(_next_steps(code, path), err=True)


def invite(role: Role, data_dir: Path | None) -> None:
    """Print the code for a role."""
    path = code_file(data_dir)
    code = _kept(path)
    if code is None:
        leave(f"there is no join code in {path}; make a cluster with `exobus cluster init`", FAILED)
    try:
        invited = code.invite(role)
    except JoinCodeError as error:
        leave(str(error), FAILED)
    typer.echo(invited.text())
    typer.echo(f"whoever has it can join {code.name} as {ALLOWS[role]}", err=True)


def _kept(path: Path) -> JoinCode | None:
    try:
        return read_code(path)
    except (JoinCodeError, PrivateFileError) as error:
        leave(f"the join code in {path} cannot be used: {error}", FAILED)


def _next_steps(code: JoinCode, path: Path) -> str:
    return "\n".join(
        (
            f"cluster {code.name} is made; its join code is above and in {path}",
            "here:                 exobus node --host auto",
            "on another machine:   exobus node --host auto --join CODE",
            "whoever has the code can join; keep it like a password",
        )
    )
