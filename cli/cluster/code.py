"""`exobus cluster init` and `invite`: the join code on this machine. Asks no running node."""

from __future__ import annotations

from pathlib import Path

import typer

from cli.join_codes import code_file, kept_code
from cli.local_nodes import running_nodes
from cli.options import FAILED, USAGE, leave, typed_command
from cluster.join_code import JoinCode, JoinCodeError, new_join_code
from cluster.roles import Role
from common.private_files import PrivateFileError, write_private

ALLOWS = {
    Role.MEMBER: "a member: it holds layers, places models, and invites and revokes nodes",
    Role.GATEWAY: "a gateway: it sends chats and holds no layers",
    Role.OBSERVER: "an observer: it reads facts and state, and sends no work",
}


def init(name: str, data_dir: Path | None) -> None:
    """Make a cluster. An existing join code is never overwritten."""
    path = code_file(data_dir)
    try:
        code = new_join_code(name)
    except JoinCodeError as error:
        leave(str(error), USAGE)
    if kept := _kept(data_dir):
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
    typer.echo("\n".join(_next_steps(code, path, data_dir)), err=True)


def invite(role: Role, data_dir: Path | None) -> None:
    """Print the join code for a role."""
    code = _kept(data_dir)
    if code is None:
        leave(f"there is no join code in {code_file(data_dir)}; make a cluster with `exobus cluster init`", FAILED)
    try:
        invited = code.invite(role)
    except JoinCodeError as error:
        leave(str(error), FAILED)
    typer.echo(invited.text())
    typer.echo(f"a node with this code can join {code.name} as {ALLOWS[role]}", err=True)


def _kept(data_dir: Path | None) -> JoinCode | None:
    try:
        return kept_code(data_dir)
    except (JoinCodeError, PrivateFileError) as error:
        leave(str(error), FAILED)


def _next_steps(code: JoinCode, path: Path, data_dir: Path | None) -> list[str]:
    """Return what to type next. A node that runs without a cluster has to be stopped, or a second one would start."""
    folder = None if data_dir is None else str(data_dir.expanduser().absolute())
    running = [node.name for node in running_nodes() if not node.cluster and folder in (None, node.data_dir)]
    first = f"stop node {' and '.join(running)} (Ctrl-C), then:" if running else "here:"
    where = "" if data_dir is None else f" --data-dir {data_dir}"
    return [
        f"cluster {code.name} is made; its join code is above and in {path}",
        f"{first:<21} {typed_command()} node --host auto{where}",
        "on another machine:   exobus node --host auto --join CODE",
        "anyone with the code can join; treat it like a password",
    ]
